"""Real Grid Engine for tests, in a network namespace of its own."""
