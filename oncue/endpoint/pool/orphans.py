"""Processes that a dead worker's tasks left behind.

An agent adopts them (oncue.processes.children). While a worker lives, they are the worker's.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from oncue.processes.children import children_of, descendants_of, kill_all, reap


class Orphans:
    """The children of this process that are no workers."""

    def __init__(self) -> None:
        self._spared: set[int] = set()  # those of detached functions
        self._killed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._spared or self._killed)

    def look(self, workers: Collection[int], detached: bool) -> None:
        """Kill what a worker that has just ended left behind.

        Spare it if the function is detached.
        """
        found = children_of(os.getpid()) - set(workers) - self._spared
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
