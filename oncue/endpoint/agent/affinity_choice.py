"""Choice of the tasks that start next, by their affinity keys. Pure.

A key stands for what its tasks have loaded: a model, a calibration. While the workers that had the
key are busy, others of the first waiting tasks go first. That delays a task by little:

- A worker that is free does not wait: if all keys are at busy workers, it takes the first task.
- The first task is overtaken for at most `patience_us`. Then any worker takes it, and has its key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice

from oncue.endpoint.agent.task_queue import QueuedSlice
from oncue.protocol.records import Call
from oncue.protocol.run_options import Resources, affinity_of

SEARCHED = 32  # waiting slices, for one whose worker is free
LEAST_US, MOST_US = 1_000_000, 60_000_000
TASKS = 2  # so many times as long as a task takes on average, a task may be overtaken
Rooms = Sequence[tuple[Hashable, int]]  # (worker or node, chunks that it accepts now)


def patience_us(task_us: float) -> int:
    """Return how long a task may be overtaken, where tasks take so long on average."""
    return int(min(MOST_US, max(LEAST_US, TASKS * task_us)))


class AffinityChoice:
    """Choice within one turn of the agent, in which the pool does not change.

    `rooms_of` returns the workers that had a key.
    """

    def __init__(self, rooms_of: Callable[[str], Rooms], patience_us: int, now_us: int) -> None:
        self._rooms_of, self._patience_us, self._now_us = rooms_of, patience_us, now_us
        self._given: set[str] = set()  # keys without a worker before this turn
        self._rooms: dict[str, Rooms] = {}
        self._used: dict[Hashable, int] = {}  # chunks given in this turn

    def index(self, waiting: Iterable[QueuedSlice], admission: Callable[[Call], bool] | None = None) -> int:
        """Return the index of the slice to start.

        `admission`: returns True for those that may. The first one may.
        """
        first: QueuedSlice | None = None
        for at, part in enumerate(islice(waiting, SEARCHED)):
            first = first or part
            call = part.group.call
            key = affinity_of(call.run)
            if at and _resources(call) != _resources(first.group.call):
                continue  # the pool may hold its room for the first one
            may_start = not at or admission is None or admission(call)
            if may_start and (not key or self._take(key)):
                if at and not first.overtaken_us:
                    first.overtaken_us = self._now_us
                return at
            if first.overtaken_us and self._now_us - first.overtaken_us > self._patience_us:
                return 0
        return 0

    def _take(self, key: str) -> bool:
        """Return True if a task of this key finds its worker free, or has none."""
        if key in self._given:
            return False
        rooms = self._rooms.get(key)
        if rooms is None:
            rooms = self._rooms[key] = self._rooms_of(key)
        if not rooms:
            self._given.add(key)
            return True
        for place, room in rooms:
            used = self._used.get(place, 0)
            if used < room:
                self._used[place] = used + 1
                return True
        return False


def _resources(call: Call) -> Resources:
    return Resources() if call.run is None else call.run.resources
