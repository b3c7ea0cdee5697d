"""Triggers: sources of events.

`catalog.py` lists the kinds, `base.py` is their interface.
"""
