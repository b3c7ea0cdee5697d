"""CPython's own tests of executors, run against `client.executor()`."""
