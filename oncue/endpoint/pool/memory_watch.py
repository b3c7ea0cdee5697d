"""Watches the memory of tasks whose function has a limit."""

from __future__ import annotations

import contextlib

import psutil

from oncue.processes.children import descendants_of

LOOK_US = 50_000  # between two looks at a worker
CHILDREN_US = 500_000  # between two looks at its children


class MemoryWatch:
    """Memory of one worker and its children, as often as that is cheap."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._due_us = self._children_due_us = 0
        self._children: set[int] = set()

    def exceeded(self, limit_bytes: int, now_us: int) -> int:
        """Return the bytes in use if they are more than the limit; else 0."""
        if now_us < self._due_us:
            return 0
        self._due_us = now_us + LOOK_US
        if now_us >= self._children_due_us:
            self._children_due_us = now_us + CHILDREN_US
            self._children = descendants_of(self._pid)
        used = _bytes({self._pid, *self._children}, shared=True)
        if used > limit_bytes and self._children:
            used = _bytes({self._pid, *self._children}, shared=False)  # slow: only if it is close
        return used if used > limit_bytes else 0


def _bytes(pids: set[int], shared: bool) -> int:
    """Return the memory of processes. `shared`: pages of several count several times."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            total += process.memory_info().rss if shared else _proportional(process)
    return total


def _proportional(process: psutil.Process) -> int:
    found = process.memory_full_info()
    return int(getattr(found, "pss", found.uss))
