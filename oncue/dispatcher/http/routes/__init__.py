"""Routes of the HTTP API, one file per noun; table.py lists them all."""
