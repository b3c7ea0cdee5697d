"""Commands of `oncue endpoint`, one file each."""
