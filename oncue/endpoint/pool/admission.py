"""Admission of chunks: room of workers, and tasks that need several of them.

A task that states `cores: 4` takes the room of 4 workers of one core: while it runs in one of them,
three others stay idle. Until so many are idle, such a task waits at the agent, and the pool gives
room to no other: it would wait for ever behind small ones.

Where workers are pinned, it runs in one that is pinned to what all four have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from oncue.endpoint.pool.capacity import NodeCapacity
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.endpoint.pool.worker_process import WorkerProcess
from oncue.protocol.run_options import Resources

OFFER_US = 1_000_000  # for which room that a waiting task needs is offered to no other


class Place(NamedTuple):
    """A worker for a chunk.

    `new`: its successor runs the chunk, pinned to what these numbers have.
    """

    worker: WorkerProcess
    numbers: tuple[int, ...]  # of the workers whose room the chunk takes
    new: bool = False


class Admission:
    """Room of a pool's workers. `sizer` knows which chunks are short."""

    def __init__(self, capacity: NodeCapacity, sizer: ChunkSizer, *, pinned: bool = False) -> None:
        self.capacity, self._sizer, self._pinned = capacity, sizer, pinned
        self._waits = 0  # workers that a task needs, which the agent has
        self._offered_us = 0  # since when there is room for it

    def room(self, workers: Collection[WorkerProcess], now_us: int) -> int:
        """Return how many chunks the pool takes now."""
        blocked = _blocked(workers)
        if not blocked and not self._waits:
            return sum(map(self.room_of, workers))
        free, behind = self._with_room(workers, blocked)
        if not self._waits:
            return sum(map(self.room_of, free + behind))
        if len(free) < self._waits:
            return 0
        self._offered_us = self._offered_us or now_us
        if now_us - self._offered_us > OFFER_US:  # it was cancelled, or has expired
            self._waits = self._offered_us = 0
        return 1

    def place(
        self, workers: Collection[WorkerProcess], function: str, resources: Resources, fresh: bool, key: str = ""
    ) -> Place | None:
        """Return where a chunk of a function may run now; None: nowhere.

        Then room is made for it if it needs several workers. `fresh`: in one that has run nothing.
        `key`: rather in one that had this affinity key. A new key goes to one that has had few.
        """
        width = self.capacity.width(resources)
        free, behind = self._with_room(workers, _blocked(workers))
        if width < self._waits:
            return None
        if width > 1:
            if len(free) < width:
                self._waits = width
                return None
            self._waits = self._offered_us = 0
        group = _neighbours(free, width) if width > 1 and self._pinned else ()
        found = [w for w in free if w.number in group] if group else free if fresh else free + behind
        if not found:
            return None
        w = min(found, key=lambda w: (fresh and w.count > 0, self._is_other(w, group), *_cost(w, function, key)))
        numbers = group or (w.number,)
        if len(numbers) < width:
            numbers = (w.number, *(x.number for x in free if x is not w))[:width]
        return Place(w, numbers, new=(fresh and w.count > 0) or self._is_other(w, group))

    def rooms_of(self, workers: Collection[WorkerProcess], key: str) -> list[tuple[WorkerProcess, int]]:
        """Return the workers that had an affinity key, and how many chunks each takes now."""
        return [(w, self.room_of(w)) for w in workers if key in w.keys and not w.leaving]

    def _is_other(self, w: WorkerProcess, group: tuple[int, ...]) -> bool:
        """Return True if a worker is pinned to other things than a chunk needs."""
        return self._pinned and w.numbers != (group or (w.number,))

    def _with_room(
        self, workers: Collection[WorkerProcess], blocked: set[int]
    ) -> tuple[list[WorkerProcess], list[WorkerProcess]]:
        """Return the workers that take a chunk now: those without one, and the others."""
        room = [w for w in workers if self.room_of(w)]
        return [w for w in room if not w.chunks and w.number not in blocked], [w for w in room if w.chunks]

    def room_of(self, w: WorkerProcess) -> int:
        """Return how many chunks a worker takes now: two short ones, or one."""
        if not w.ready or w.stop is not None or w.ending or w.pipe_closed_us or len(w.chunks) > 1:
            return 0
        if w.retired_us or (w.chunks and (w.chunks[0].properties.fresh or len(w.chunks[0].numbers) > 1)):
            return 0
        if not w.chunks:
            return 2 if w.functions and self._sizer.short(next(reversed(w.functions))) else 1
        return 1 if self._sizer.short(w.chunks[0].function, len(w.chunks[0].tasks)) else 0


def _cost(w: WorkerProcess, function: str, key: str) -> tuple[int, ...]:
    chunks, loads = len(w.chunks), function not in w.functions
    if not key:
        return chunks, loads
    last_us = w.keys.get(key, 0)
    return not last_us, chunks, -last_us, len(w.keys), loads


def _blocked(workers: Collection[WorkerProcess]) -> set[int]:
    """Return the numbers of the workers whose room wide tasks in others take."""
    return {n for w in workers for chunk in w.chunks if len(chunk.numbers) > 1 for n in chunk.numbers}


def _neighbours(free: list[WorkerProcess], width: int) -> tuple[int, ...]:
    """Return the numbers of so many free workers that share caches and links.

    If one is pinned to what so many have, those.
    """
    numbers = sorted(w.number for w in free)
    for w in free:
        if len(w.numbers) == width and set(w.numbers) <= set(numbers):
            return w.numbers
    first = min(
        range(len(numbers) - width + 1), key=lambda i: (numbers[i + width - 1] - numbers[i], numbers[i] % width)
    )
    return tuple(numbers[first : first + width])
