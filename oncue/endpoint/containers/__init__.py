"""Container runtimes: how the command line of a worker is made."""
