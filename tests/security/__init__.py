"""Attacks on a running system, and what has to hold while they run."""
