"""Limiters: how many firings of a rule run at once, and how fast."""
