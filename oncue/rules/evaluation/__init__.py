"""Evaluates rules whose cost has no small bound, in a process that can be killed."""
