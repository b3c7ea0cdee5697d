"""Limit of open files of a process, and a listening socket that leaves it some."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
import sys
import time

DESCRIPTORS = 65_536  # the soft limit is raised up to this
LEAST_SPARE = 48
REFUSE_S = 6.0  # longer than a peer may take to prove who it is
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # of Linux; the module `socket` has no names for them
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as permitted. Return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else DESCRIPTORS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS permits less than it says
        return soft
    return wanted


class GuardedListener:
    """A listening TCP socket that refuses connections while few descriptors are left.

    ZeroMQ accepts whoever dials, and each holds a descriptor until its handshake has failed. So
    whoever reaches the port could take all of them. While it refuses, the kernel drops what would
    open a connection, on Linux; those who dial try again. Open connections go on.
    """

    def __init__(self, host: str, port: int) -> None:
        """Listen. `port` 0 takes any free one. Raises OSError."""
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        self._socket = socket.socket(family, kind, number)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind(address)
            self._socket.listen(256)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        self.port = int(self._socket.getsockname()[1])
        self._accepts_at = 0.0  # monotonic time at which it accepts again; 0: it does

    def duplicate(self) -> int:
        """Return a descriptor of the socket, for somebody who closes it."""
        return os.dup(self._socket.fileno())

    def watch(self) -> bool:
        """Refuse or accept connections. Return True if it has begun to refuse."""
        if self._accepts_at:
            if time.monotonic() >= self._accepts_at:
                self._accepts_at = 0.0
                self._set_filter(b"")
            return False
        if self._is_room():
            return False
        self._accepts_at = time.monotonic() + REFUSE_S
        self._set_filter(_DROP_ALL)
        return True

    def _is_room(self) -> bool:
        """Return True if a number is free that leaves enough above it."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return True
        try:
            lowest = os.dup(self._socket.fileno())
        except OSError:
            return False
        os.close(lowest)
        return lowest < limit - max(LEAST_SPARE, limit // 4)

    def _set_filter(self, program: bytes) -> None:
        if sys.platform != "linux":
            return
        if not program:
            self._socket.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
            return
        held = ctypes.create_string_buffer(program)
        self._socket.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        )

    def close(self) -> None:
        self._socket.close()
