"""Limits after which a worker is replaced by a new one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from oncue.endpoint.pool.limits import MAX_MEMORY, MAX_TASKS


class Recycling:
    """Counts tasks, and reads the memory in use. Without limits it costs nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.tasks_left = int(environ.get(MAX_TASKS, "0")) or sys.maxsize
        self._memory_bytes = int(environ.get(MAX_MEMORY, "0"))

    def is_due(self, tasks: int) -> bool:
        """Count tasks that were run. Return True if the worker should be replaced."""
        self.tasks_left -= tasks
        return self.tasks_left <= 0 or bool(self._memory_bytes and memory_bytes() > self._memory_bytes)


def memory_bytes() -> int:
    """Return the memory that this process holds."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as f:
            found = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    else:
        import psutil

        found = psutil.Process().memory_info().rss
    return found
