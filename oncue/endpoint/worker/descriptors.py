"""Descriptors of the worker itself, out of the way of user code."""

from __future__ import annotations

import fcntl
import os
import resource

ROOM = 24  # numbers below the limit that the worker's descriptors use
HIGHEST = 4096  # of a number: the kernel's table grows with it


def move_up(fd: int) -> int:
    """Move a descriptor to a high number that children do not inherit; return it.

    Functions that close or use "all" descriptors mostly mean the low ones.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = max(min(soft, HIGHEST) - ROOM, fd + 1)
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    except OSError:  # the limit is low, or has none to spare
        os.set_inheritable(fd, False)
        return fd
    os.close(fd)
    return high
