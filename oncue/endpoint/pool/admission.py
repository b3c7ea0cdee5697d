"""Room of workers for chunks."""

from __future__ import annotations

from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.endpoint.pool.worker_process import WorkerProcess


def room_of(w: WorkerProcess, sizer: ChunkSizer) -> int:
    """Return how many chunks a worker takes now: two short ones, or one."""
    if not w.ready or w.stop is not None or w.ending or w.pipe_closed_us or len(w.chunks) > 1:
        return 0
    if w.retired_us or (w.chunks and w.chunks[0].properties.fresh):
        return 0
    if not w.chunks:
        return 2 if w.functions and sizer.short(next(reversed(w.functions))) else 1
    return 1 if sizer.short(w.chunks[0].function, len(w.chunks[0].tasks)) else 0
