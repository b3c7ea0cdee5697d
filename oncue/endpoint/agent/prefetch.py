"""Prefetch limit: how many tasks an agent wants to hold. Pure.

Short tasks travel in bulk. Long tasks never queue behind one another. A server that limits the
tasks of each function (see Welcome.by_function) gets ample credit: long tasks of one function are
not in the way of short ones of another. The rest is for servers of former versions.
"""

from __future__ import annotations

AHEAD_US = 50_000  # of work ready for each worker: a round trip to a far server
MOST = 4_096  # queued beside the workers' own
WEIGHT = 0.25  # of a new measurement
LONG_US = 1_000_000


class PrefetchLimit:
    """Limit on held tasks, from the measured duration of tasks."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.by_function = False  # the server limits the tasks of each function
        self._task_us = 0.0  # measured; 0: not yet

    def measured(self, tasks: int, took_us: int) -> None:
        """Add a measurement: a chunk of `tasks` tasks took `took_us` in all."""
        each = max(took_us, 0) / tasks + 1.0
        self._task_us = each if not self._task_us else (1 - WEIGHT) * self._task_us + WEIGHT * each

    def runs_long(self) -> None:
        """Note that a task runs for over a second; the next ones may too."""
        self._task_us = max(self._task_us, LONG_US)

    @property
    def task_us(self) -> float:
        """Measured duration of a task; 0: not known yet."""
        return self._task_us

    @property
    def capacity(self) -> int:
        """Tasks to hold in all: one at each worker, and one ready for each.

        Of short tasks, as many are ready as run in AHEAD_US.
        """
        ahead = self.workers
        if self.by_function:
            ahead = max(ahead, MOST)
        elif self._task_us:
            ahead = max(ahead, min(MOST, int(self.workers * AHEAD_US / self._task_us)))
        return self.workers + ahead
