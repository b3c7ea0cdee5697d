"""The pool: worker processes of one node."""
