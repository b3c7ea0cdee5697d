"""Conditions and arguments of rules, tested on an event."""
