"""Chains of tasks: what began one, and what followed."""
