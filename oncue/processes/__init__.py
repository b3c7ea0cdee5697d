"""Processes of this machine: who holds a lock, signals to it, and its memory's secrecy."""
