"""Runners of stateful rules: the fold, its states, its timers."""
