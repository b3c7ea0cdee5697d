"""Admission of chunks: room of workers, and tasks that need several of them.

A task that states `cores: 4` takes the room of 4 workers of one core: while it runs in one of them,
three others stay idle. Until so many are idle, such a task waits at the agent, and the pool gives
room to no other: it would wait for ever behind small ones.
"""

from __future__ import annotations

from collections.abc import Collection

from oncue.endpoint.pool.capacity import NodeCapacity
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.endpoint.pool.worker_process import WorkerProcess

OFFER_US = 1_000_000  # for which room that a waiting task needs is offered to no other


class Admission:
    """Room of a pool's workers. `sizer` knows which chunks are short."""

    def __init__(self, capacity: NodeCapacity, sizer: ChunkSizer) -> None:
        self.capacity, self._sizer = capacity, sizer
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

    def fit(self, workers: Collection[WorkerProcess], width: int, fresh: bool) -> list[WorkerProcess]:
        """Return the workers that a chunk may go to now.

        None: if it is wide, room is made for it. `fresh`: it needs a worker without another chunk.
        """
        free, behind = self._with_room(workers, _blocked(workers))
        if width < self._waits:
            return []
        if width == 1:
            return free if fresh else free + behind
        if len(free) < width:
            self._waits = width
            return []
        self._waits = self._offered_us = 0
        return free

    def _with_room(
        self, workers: Collection[WorkerProcess], blocked: int
    ) -> tuple[list[WorkerProcess], list[WorkerProcess]]:
        """Return the workers that take a chunk now: those without one, and the others."""
        room = [w for w in workers if self.room_of(w)]
        return [w for w in room if not w.chunks][blocked:], [w for w in room if w.chunks]

    def room_of(self, w: WorkerProcess) -> int:
        """Return how many chunks a worker takes now: two short ones, or one."""
        if not w.ready or w.stop is not None or w.ending or w.pipe_closed_us or len(w.chunks) > 1:
            return 0
        if w.retired_us or (w.chunks and (w.chunks[0].properties.fresh or w.chunks[0].width > 1)):
            return 0
        if not w.chunks:
            return 2 if w.functions and self._sizer.short(next(reversed(w.functions))) else 1
        return 1 if self._sizer.short(w.chunks[0].function, len(w.chunks[0].tasks)) else 0


def _blocked(workers: Collection[WorkerProcess]) -> int:
    """Return how many workers stay idle for the wide tasks of others."""
    return sum(chunk.width - 1 for w in workers for chunk in w.chunks)
