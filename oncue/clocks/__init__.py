"""Clocks: this process's time, which never steps, and that of peers."""
