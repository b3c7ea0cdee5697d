"""Processes that a dead worker's tasks left behind.

An agent adopts them (oncue.processes.children). While a worker lives, they are the worker's.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from oncue.processes.children import children_of, descendants_of, kill_all, reap


class Orphans:
    """The children of this process that are no workers."""

    def __init__(self) -> None:
        #: Those of detached functions, and those that this process had before it started workers: a
        #: script may have started them and become the agent by `exec`.
        self._spared = children_of(os.getpid())
        self._killed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._spared or self._killed)

    def look(self, workers: Collection[int], detached: bool) -> None:
        """Kill what a worker that has just ended left behind.

        Spare it if the function is detached.
        """
        found = set(filter(_is_of_a_task, children_of(os.getpid()) - set(workers) - self._spared))
        if detached:
            self._spared |= found
            return
        kill_all(found.union(*map(descendants_of, found)))
        self._killed |= found

    def tick(self, workers: Collection[int]) -> None:
        """Wait for those that have ended; kill what the killed ones left behind."""
        reap(self._spared | self._killed)
        here = children_of(os.getpid())
        self._spared &= here
        if self._killed:
            self._killed &= here
            self.look(workers, detached=False)


def _is_of_a_task(pid: int) -> bool:
    """Return True if a worker's task has started this child.

    In a container, process 1 adopts all orphans: there only those with a worker's environment.
    """
    if os.getpid() != 1:
        return True
    try:
        return b"ONCUE_WORKER=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
