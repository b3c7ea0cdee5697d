"""How long a function's tasks take, as measured, and so how many of them a chunk should have. Pure."""

from __future__ import annotations

SHORT_US = 5_000  # of work in a chunk: then a second one may wait behind it
CHUNK_US = 1_500  # of work that a chunk should hold
CHUNK_TASKS = 256
WEIGHT = 0.3  # of a new measurement
FUNCTIONS = 10_000  # remembered


class ChunkSizer:
    def __init__(self) -> None:
        self._task_us: dict[str, float] = {}  # per function

    def measured(self, function: str, tasks: int, took_us: int) -> None:
        """So many tasks, one after the other, took so long in all."""
        each, known = max(took_us / tasks, 0.5), self._task_us.get(function)
        self._task_us[function] = each if known is None else (1 - WEIGHT) * known + WEIGHT * each
        if len(self._task_us) > FUNCTIONS:
            self._task_us.pop(next(iter(self._task_us)))

    def chunk_size(self, function: str) -> int:
        """Tasks that a chunk of this function should have: one or two ms of work; 1 while nothing is known of it."""
        measured = self._task_us.get(function)
        return 1 if measured is None else max(1, min(CHUNK_TASKS, int(CHUNK_US / measured)))

    def short(self, function: str, tasks: int = CHUNK_TASKS) -> bool:
        """Whether a chunk of so many tasks holds nobody up."""
        measured = self._task_us.get(function)
        return measured is not None and measured * min(tasks, self.chunk_size(function)) <= SHORT_US
