"""Processes and threads: who holds a lock, what can be read, whose work is next."""
