"""Services that a caller can use, one file per noun."""
