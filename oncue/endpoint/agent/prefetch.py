"""How many tasks an agent wants to hold: pure. Short tasks travel in bulk, long ones never queue behind one another."""

from __future__ import annotations

AHEAD_US = 50_000  # of work kept ready for each worker: a round trip to a far server
MOST = 4_096  # queued beside the workers' own
WEIGHT = 0.25  # of a new measurement
LONG_US = 1_000_000


class PrefetchLimit:
    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._task_us = 0.0  # measured; 0: not yet

    def measured(self, tasks: int, took_us: int) -> None:
        """A chunk of so many tasks ran for so long in all."""
        each = max(took_us, 0) / tasks + 1.0
        self._task_us = each if not self._task_us else (1 - WEIGHT) * self._task_us + WEIGHT * each

    def runs_long(self) -> None:
        """A task runs for over a second: what comes next may be like it."""
        self._task_us = max(self._task_us, LONG_US)

    @property
    def capacity(self) -> int:
        """Tasks to hold in all: each worker has one, and one is ready for it; of short ones as many as the time ahead takes."""
        ahead = self.workers
        if self._task_us:
            ahead = max(ahead, min(MOST, int(self.workers * AHEAD_US / self._task_us)))
        return self.workers + ahead
