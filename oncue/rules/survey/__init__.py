"""Tests rules against many stored events, in a process of its own."""
