"""Schedulers for tests: stand-ins of their commands, faults of commands, and sites of the contract suite."""
