"""Kubernetes for tests that are optional: `make kubernetes`."""
