"""Collects what became of chunks, until the pool is drained."""

from __future__ import annotations

from oncue.clocks.process import now_us
from oncue.endpoint.pool.base import PoolEvents
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.endpoint.pool.exit_diagnosis import cancelled
from oncue.endpoint.pool.shared_progress import position
from oncue.endpoint.pool.worker_process import ChunkInFlight, WorkerProcess
from oncue.endpoint.refusal import refused
from oncue.functions.body import FunctionProperties
from oncue.protocol.codec import encode
from oncue.protocol.records import CANCELLED, REFUSED, Ended, Failure, TaskRecord


class EventCollector:
    """Events since the last drain; each task's end is in them once."""

    def __init__(self, sizer: ChunkSizer) -> None:
        self.events = PoolEvents()
        self._sizer = sizer

    def drain(self) -> PoolEvents:
        events, self.events = self.events, PoolEvents()
        return events

    def report(self, chunk: ChunkInFlight, first: int, ended: list[Ended]) -> None:
        """Report results from index `first` on, except those reported already."""
        fresh = ended[chunk.done - first :] if chunk.done > first else ended
        if fresh:
            chunk.done += len(fresh)
            self.events.ended.append((chunk.function, chunk.attempt, fresh))
            self._sizer.measured(chunk.function, len(fresh), fresh[-1].ended_us - fresh[0].started_us)

    def report_finished(self, w: WorkerProcess, chunk: ChunkInFlight) -> None:
        """Report the finished tasks of this chunk that are in shared memory."""
        first, ended = w.progress.finished()
        if w.current_chunk == chunk.n and first <= chunk.done < first + len(ended) and chunk.has(first, ended):
            self.report(chunk, first, ended)

    def report_long_task(self, w: WorkerProcess, chunk: ChunkInFlight, index: int, started: int, now: int) -> None:
        """Report a long task as started, and its new output."""
        task = chunk.tasks[index]
        if w.live_output.start_task(position(chunk.n, index)):
            self.events.started.append((task.id, chunk.attempt, started, f"{w.name} (pid {w.process.pid})"))
        found = w.live_output.poll(now, lambda: w.running() == (chunk, index, started))
        if found is not None:
            self.events.output.append((task.id, chunk.attempt, *found))

    def requeue(self, chunk: ChunkInFlight, first: int) -> None:
        """Requeue the tasks from `first` on, which did not start.

        Cancelled ones end.
        """
        tasks = chunk.tasks[first : chunk.end]
        chunk.end = min(first, chunk.end)
        if chunk.cancelled:
            out = [t for t in tasks if t.id in chunk.cancelled]
            tasks = [t for t in tasks if t.id not in chunk.cancelled]
            self.end(chunk, [(t, CANCELLED, cancelled(), 0, b"") for t in out])
        if tasks:
            self.events.requeue.append((chunk.function, chunk.attempt, tasks))

    def refuse(self, function: str, attempt: int, tasks: list[TaskRecord], why: str) -> None:
        """End tasks that can never run here."""
        self.end(
            ChunkInFlight(0, function, FunctionProperties(), attempt, 0, tasks),
            [(t, REFUSED, refused(why), 0, b"") for t in tasks],
        )

    def end(self, chunk: ChunkInFlight, ends: list[tuple[TaskRecord, int, Failure, int, bytes]]) -> None:
        now, attempt = now_us(), chunk.attempt
        made = [
            Ended(t.id, attempt, status, started, now, encode(why), output, t.event, t.retry_of, t.mark_us)
            for t, status, why, started, output in ends
        ]
        if made:
            self.events.ended.append((chunk.function, attempt, made))
