"""The side of the server that agents dial: one channel per endpoint."""
