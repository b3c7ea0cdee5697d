"""Processes of this machine: who holds a lock, and what others can read of one."""
