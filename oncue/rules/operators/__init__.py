"""Stateful steps of a rule; catalog.py lists them."""
