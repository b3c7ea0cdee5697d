"""Sizes chunks from the measured duration of a function's tasks. Pure."""

from __future__ import annotations

SHORT_US = 5_000  # of work in a chunk: a second one may wait behind it
CHUNK_US = 1_500  # of work that a chunk should hold
CHUNK_TASKS = 256
WEIGHT = 0.3  # of a new measurement
FUNCTIONS = 10_000  # remembered


class ChunkSizer:
    """Mean task duration per function, exponentially weighted."""

    def __init__(self) -> None:
        self._task_us: dict[str, float] = {}  # per function

    def measured(self, function: str, tasks: int, took_us: int) -> None:
        """Add a measurement: `tasks` tasks in sequence took `took_us` in all."""
        each, known = max(took_us / tasks, 0.5), self._task_us.get(function)
        self._task_us[function] = each if known is None else (1 - WEIGHT) * known + WEIGHT * each
        if len(self._task_us) > FUNCTIONS:
            self._task_us.pop(next(iter(self._task_us)))

    def chunk_size(self, function: str) -> int:
        """Return how many tasks a chunk should hold; 1 if nothing is measured."""
        measured = self._task_us.get(function)
        return 1 if measured is None else max(1, min(CHUNK_TASKS, int(CHUNK_US / measured)))

    def short(self, function: str, tasks: int = CHUNK_TASKS) -> bool:
        """Return True if a chunk of `tasks` tasks delays no other."""
        measured = self._task_us.get(function)
        return measured is not None and measured * min(tasks, self.chunk_size(function)) <= SHORT_US
