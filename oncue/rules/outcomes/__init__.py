"""Outcomes of tasks as events of rules."""
