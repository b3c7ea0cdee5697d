"""`kind: file`: a watched folder."""
