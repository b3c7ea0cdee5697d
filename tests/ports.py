"""Ports for processes that must know theirs before they listen."""

from __future__ import annotations

import contextlib
import random
import socket

#: Below what systems give to outgoing connections and to port 0 (Linux from 32768, macOS from 49152): what is free here is
#: not taken by another process between the question and the listener's start.
_LOW, _HIGH = 20_000, 32_000
_random = random.SystemRandom()  # a test's own seed must not choose the ports of all that run beside it


def free_port(*hosts: str) -> int:
    """One that is free at all of these addresses (127.0.0.1)."""
    while True:
        port = _random.randrange(_LOW, _HIGH)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for host in hosts or ("127.0.0.1",):
                held.enter_context(socket.socket()).bind((host, port))
            return port
