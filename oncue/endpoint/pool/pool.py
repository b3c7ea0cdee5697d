"""Pool of worker processes on this machine, driven by the agent's loop.

Never blocks but in `close`.

    agent ──run(chunk)──► pool ══ pipe ══► worker
    agent ◄──drain()───── pool ◄══ pipe, shared memory ══ worker

- A worker that dies costs the task that it ran (`lost`). The results of its finished tasks are
  read from shared memory; the rest of its chunks is requeued, uncharged.
- A task that runs long does not delay others: tasks behind it in its worker are requeued, and
  results before it are reported.
- A task over its timeout, or cancelled while it runs: its worker gets SIGTERM (an exception in the
  function, so `finally` blocks run), and SIGKILL after `GRACE_US`. A new worker replaces it.
- A worker that cannot start (broken environment) is started again with growing pauses; `trouble`
  says why.
"""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from oncue.clocks.process import now_us
from oncue.endpoint.pool.admission import Admission, Place
from oncue.endpoint.pool.base import PoolEvents
from oncue.endpoint.pool.capacity import NOTHING, capacity_here
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.endpoint.pool.deadly_tasks import DeadlyTasks
from oncue.endpoint.pool.event_collector import EventCollector
from oncue.endpoint.pool.exit_diagnosis import OomWatch, diagnose, memory_exceeded
from oncue.endpoint.pool.function_bodies import FunctionBodies
from oncue.endpoint.pool.launch import LaunchOptions, launch_in
from oncue.endpoint.pool.orphans import Orphans
from oncue.endpoint.pool.output_file import read_output
from oncue.endpoint.pool.protocol import EXIT_WORN, ChunkResults, WorkerReady
from oncue.endpoint.pool.shared_progress import position
from oncue.endpoint.pool.stopped_tasks import StoppedTasks
from oncue.endpoint.pool.task_folders import TASKS
from oncue.endpoint.pool.worker_process import ChunkInFlight, WorkerProcess
from oncue.endpoint.pool.worker_starts import WorkerStarts
from oncue.endpoint.worker.blob_files import BlobFiles
from oncue.protocol.records import TaskRecord
from oncue.protocol.run_options import RunOptions, affinity_of, merged

GRACE_US = 2_000_000  # between SIGTERM and SIGKILL
LOADING_US = 60_000_000  # added to the timeout while a task's function is imported
LONG_US = 50_000  # after which the tasks behind a running one are requeued
SETTLE_US = 2_000  # from a stop to when the worker has surely seen it
STARTED_US = 1_000_000  # after which a running task is reported as started
STUCK_S = 10.0  # after which a worker that does not begin its chunk is replaced
IDLE_US = 1_000_000  # between two looks at idle workers: has one exited, do its children print?
START_US = 30_000_000  # after which a worker that is not ready is started again


class Pool:
    """A WorkerPool of child processes (pool/base.py).

    `orphans`: the processes that this one adopts. Raises OSError as launch_in does.
    """

    def __init__(
        self,
        workers: int,
        folder: Path,
        *,
        orphans: Orphans | None = None,
        **options: Unpack[LaunchOptions],
    ) -> None:
        self.size = workers
        self.next_wake_us: int | None = None  # when `tick` is due; None: not before an event
        self.fds_version = 0  # changes when `fds` does
        launch = launch_in(folder, workers, options)
        self._starts = WorkerStarts(launch, workers)
        self._stopped = StoppedTasks(folder / TASKS, BlobFiles(launch.env))
        self._orphans = orphans  # None: those of dead workers are init's
        self._workers: dict[int, WorkerProcess] = {}  # by the fd that is read
        self._deadly = DeadlyTasks()
        self._chunk_sizer = ChunkSizer()
        self._admission = Admission(
            capacity_here(workers, launch.env, launch.own), self._chunk_sizer, pinned=launch.pinned
        )
        self._collector = EventCollector(self._chunk_sizer)
        self._bodies = FunctionBodies()
        self._oom = OomWatch()
        self._closing = False
        self.tick(now_us())

    # ------------------------------------------------------------ for the agent's loop

    def fds(self) -> list[int]:
        """Return the descriptors to watch for reading."""
        return [*self._workers, *self._stopped.fds()]

    def drain(self) -> PoolEvents:
        return self._collector.drain()

    @property
    def trouble(self) -> str:
        """Reason why workers cannot be started; empty if they can."""
        return self._starts.trouble

    @property
    def ready(self) -> int:
        """Workers that have started."""
        return sum(w.ready and not w.retired_us for w in self._workers.values())

    @property
    def busy(self) -> int:
        """Workers that hold a chunk."""
        return sum(bool(w.chunks) for w in self._workers.values())

    @property
    def pids(self) -> list[int]:
        return [w.process.pid for w in self._workers.values()]

    # ------------------------------------------------------------ work in

    def chunk_size(self, function: str) -> int:
        """Return how many tasks a chunk should hold: one or two ms of work."""
        if self._bodies.properties(function).fresh:
            return 1
        return self._chunk_sizer.chunk_size(function)

    def room(self) -> int:
        """Return how many chunks `run` accepts now."""
        return 0 if self._closing else self._admission.room(self._workers.values(), now_us())

    def misfit(self, options: RunOptions) -> str:
        """Return why a task with these options can never run here; "" if it can."""
        return self._admission.capacity.misfit(options.resources, max(1, len(options.hosts)))

    def rooms_of(self, key: str) -> list[tuple[WorkerProcess, int]]:
        """Return the workers that had this affinity key, each with its room."""
        return self._admission.rooms_of(self._workers.values(), key)

    def run(
        self,
        function: str,
        body: bytes | None,
        timeout_ms: int,
        attempt: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
    ) -> None:
        """Run one chunk. It is requeued if there is no room for it.

        `body` may be None for a function that was given lately. Raises FunctionError if it is not
        known.
        """
        body = self._bodies.keep(function, body)
        properties = self._bodies.properties(function)
        stated = merged(options, properties.run)
        if why := self.misfit(stated):
            return self._collector.refuse(function, attempt, tasks, why)
        workers = () if self._closing else self._workers.values()
        key = affinity_of(options)
        # The agent has reserved the whole node for a task of several.
        resources = NOTHING if stated.hosts else stated.resources
        place = self._admission.place(workers, function, resources, properties.fresh, key)
        if place is None or (w := self._worker_at(place)) is None:
            return self._collector.events.requeue.append((function, attempt, tasks))
        w.send(function, body, properties, attempt, timeout_ms, tasks, options, place.numbers)
        if key:
            w.remember_key(key, now_us())
        self._wake(now_us() + (min(LONG_US // 2, timeout_ms * 1000) if timeout_ms else LONG_US // 2))

    def _worker_at(self, place: Place) -> WorkerProcess | None:
        """Return the worker of a place, a new one if need be, which may still be starting."""
        if not place.new:
            return place.worker
        fresh = self._starts.succeed(place.worker, place.numbers, now_us())
        if fresh is not None:
            self._add(fresh)
        return fresh

    def _add(self, w: WorkerProcess) -> None:
        self._workers[w.fd_out] = w
        self.fds_version += 1
        self._wake(w.spawned_us + START_US + 1)

    # ------------------------------------------------------------ results out

    def on_readable(self, fd: int) -> None:
        w = self._workers.get(fd)
        if w is None:
            return self._stopped.on_readable()
        messages, ended = w.read()
        for message in messages:
            if isinstance(message, ChunkResults):
                self._done(w, message)
            elif isinstance(message, WorkerReady):
                w.ready = True
                self._starts.succeeded()
        if w.out_of_step:
            self._kill(w, "channel")
        if ended:
            w.pipe_closed_us = w.pipe_closed_us or now_us()
            if w.exited():
                self._remove_exited(w, now_us())
            else:
                self._wake(now_us() + 1_000)

    def _kill(self, w: WorkerProcess, why: str) -> None:
        w.ending = w.ending or why
        w.kill()
        self._wake(now_us() + 1_000)

    def _done(self, w: WorkerProcess, done: ChunkResults) -> None:
        if not w.chunks or done.n != w.chunks[0].n or not w.chunks[0].has(w.chunks[0].received, done.ended):
            w.mark_out_of_step()
            return
        chunk = w.chunks[0]
        self._collector.report(chunk, chunk.received, done.ended)
        chunk.received += len(done.ended)
        if not done.last:
            return
        w.finish_chunk()
        self._collector.requeue(chunk, chunk.done)
        if w.stop is None and not chunk.received:  # a task wrote a stop: it would return all that it gets
            self._kill(w, "stuck")
        if w.stop is not None and not w.chunks:
            w.resume()

    # ------------------------------------------------------------ cancel

    def cancel(self, ids: set[bytes] | frozenset[bytes]) -> set[bytes]:
        """End those of these tasks that are here; return their ids.

        One that just ends may still succeed.
        """
        now, found = now_us(), set()
        for w in self._workers.values():
            at = w.running()
            for chunk in w.chunks:
                here = {t.id for t in chunk.tasks[chunk.done : chunk.end] if t.id in ids}
                if not here:
                    continue
                found |= here
                chunk.cancelled |= here
                if w.stop is None:
                    w.ask_stop(now)
                if at is not None and at[0] is chunk and chunk.tasks[at[1]].id in here:
                    self._stop_worker(w, "cancel", chunk.tasks[at[1]].id, now)
        if found:
            self._wake(now + SETTLE_US)
        return found

    def _stop_worker(self, w: WorkerProcess, why: str, task_id: bytes, now_us: int) -> None:
        if w.ending:
            return
        w.ending, w.target, w.term_us = why, task_id, now_us
        w.signal(signal.SIGTERM)
        self._wake(now_us + GRACE_US)

    # ------------------------------------------------------------ time

    def tick(self, now_us: int) -> None:
        """Do what is due: timeouts, dead workers, long tasks, new workers."""
        self.next_wake_us = None
        for w in list(self._workers.values()):
            self._check_worker(w, now_us)
        if self._orphans:
            self._orphans.tick(self.pids)
            self._wake(now_us + IDLE_US)
        if not self._closing:
            self._refill(now_us)

    def _wake(self, at_us: int) -> None:
        if self.next_wake_us is None or at_us < self.next_wake_us:
            self.next_wake_us = at_us

    def _check_worker(self, w: WorkerProcess, now: int) -> None:
        if w.pipe_closed_us or (not w.ready and now - w.spawned_us > START_US):
            if w.exited():
                self._remove_exited(w, now)
                return
            # It closed its pipe and goes on, or hangs while it starts.
            # With nothing to do, it may run exit functions.
            if now - (w.pipe_closed_us or w.spawned_us) > (200_000 if w.chunks else GRACE_US):
                self._kill(w, "pipe" if w.pipe_closed_us else "")
            self._wake(now + 5_000)
            return
        if w.exited():  # a process that it forked may hold its pipe open
            w.pipe_closed_us = now
            self._remove_exited(w, now)
            return
        if w.backlog:
            w.write()
            if w.backlog:
                self._wake(now + 1_000)
        if w.retired_us and now - w.retired_us >= GRACE_US:
            self._kill(w, "")
        if w.ending:
            if now - w.term_us >= GRACE_US:
                w.kill()
            self._wake(max(w.term_us + GRACE_US, now + 50_000))
        if not w.ready:
            self._wake(w.spawned_us + START_US + 1)
        elif w.chunks:
            self._check_task(w, now)
        else:
            self._wake(now + IDLE_US)
        if w.ready:
            w.live_output.punch()

    def _check_task(self, w: WorkerProcess, now: int) -> None:
        self._wake(now + LONG_US // 2)
        if w.stop is not None and now - w.stop_us >= SETTLE_US and w.stopped():
            for chunk in w.chunks:
                first = max(w.stop - position(chunk.n, 0), chunk.done, 0)
                if first < chunk.end:
                    self._collector.requeue(chunk, first)
        elif w.stop is not None:
            self._wake(w.stop_us + SETTLE_US)
        at = w.running()
        if at is None:
            if time.monotonic() - w.moved_s > STUCK_S and not w.ending:
                self._replace_stuck(w, now)
            return
        chunk, index, started = at
        ran = now - started
        if index > chunk.done and ran > LONG_US // 2:
            self._collector.report_finished(w, chunk)
        if w.stop is None and ran > LONG_US and (index + 1 < chunk.end or len(w.chunks) > 1):
            w.ask_stop(now)
            self._wake(now + SETTLE_US)
        if chunk.timeout_us:
            limit = started + chunk.timeout_us + (LOADING_US if w.loading else 0)
            if now >= limit:
                self._stop_worker(w, "timeout", chunk.tasks[index].id, now)
            elif not w.ending:
                self._wake(limit)
        if chunk.properties.memory_bytes and not w.ending:
            chunk.used_bytes = w.memory_exceeded(chunk.properties.memory_bytes, now)
            if chunk.used_bytes:
                self._stop_worker(w, "memory", chunk.tasks[index].id, now)
                w.kill()
        if ran > STARTED_US:
            self._collector.report_long_task(w, chunk, index, started, now)

    def _replace_stuck(self, w: WorkerProcess, now: int) -> None:
        """End a worker that begins no chunk, after requeueing it, or reports none."""
        if w.current_chunk == w.chunks[0].n:
            self._kill(w, "stuck")
        elif w.stop is None:
            w.ask_stop(now)
            self._wake(now + SETTLE_US)
        elif now - w.stop_us > LONG_US:
            self._kill(w, "stuck")

    # ------------------------------------------------------------ exited and new workers

    def _remove_exited(self, w: WorkerProcess, now: int) -> None:
        """Remove a worker that has exited: report its results, requeue the rest."""
        messages, _ = w.read()
        for message in messages:
            if isinstance(message, ChunkResults):
                self._done(w, message)
            else:
                w.ready = True
        at = w.running()
        if at is not None:  # while the process has its number, so that no other worker sweeps it up
            self._stopped.take_over(w.process.pid, at[0].tasks[at[1]].id, at[0].attempt)
        code, detached = w.reap(), w.detached
        if w.chunks:
            self._collector.report_finished(w, w.chunks[0])
        for chunk in list(w.chunks):
            here = at is not None and at[0] is chunk
            first = chunk.done
            begun = max(w.begun(chunk), min(at[1], chunk.end) if here and at is not None else 0)
            if first == begun < chunk.end and not here and code != EXIT_WORN:
                begun += self._deadly.add(chunk.tasks[first])
            if first < begun:  # they ran, and their results could not be read
                why = diagnose(w.ending, 0, code, False)
                self._collector.end(chunk, [(t, *why, 0, b"") for t in chunk.tasks[first:begun]])
                first = begun
            if at is not None and here and first <= at[1] < chunk.end:
                first = self._end_running(w, chunk, at[1], at[2], code)
            self._collector.requeue(chunk, first)
        w.chunks.clear()
        self._stopped.remove(w.process.pid)
        del self._workers[w.fd_out]
        self.fds_version += 1
        if self._orphans is not None:
            self._orphans.look(self.pids, detached)
        self._wake(self._starts.plan(w, code, now))
        w.close()

    def _end_running(self, w: WorkerProcess, chunk: ChunkInFlight, index: int, started: int, code: int) -> int:
        """End the task that a dead worker ran.

        Return the index of the first unstarted task.
        """
        task = chunk.tasks[index]
        if w.ending in ("timeout", "cancel", "memory") and task.id != w.target:
            return index  # the task meant had just ended, and the signal hit this one: requeue it
        oom = not w.ending and self._oom.check()
        status, failure = diagnose(w.ending, chunk.timeout_us // 1000, code, oom)
        if w.ending == "memory":
            status, failure = memory_exceeded(chunk.used_bytes, chunk.properties.memory_bytes)
        output, end = read_output(w.capture), self._collector.end
        self._stopped.keep(
            w.process.pid, failure, lambda kept, note: end(chunk, [(task, status, kept, started, output + note)])
        )
        return index + 1

    def _refill(self, now: int) -> None:
        started, due = self._starts.start_due(now)
        for w in started:
            self._add(w)
        if due is not None:
            self._wake(due)

    # ------------------------------------------------------------ the end

    def close(self, grace_s: float = 5.0) -> None:
        """End the workers, after `grace_s` seconds for running tasks. Blocks.

        Tasks that have not started are requeued. Tasks that still run then are lost. Call `drain`
        once more afterwards.
        """
        self._closing = True
        now = now_us()
        deadline = now + int(grace_s * 1e6)
        for w in self._workers.values():
            if w.chunks and w.stop is None:
                w.ask_stop(now)
        self._turn_until(deadline, lambda: not self.busy)
        for w in list(self._workers.values()):
            if w.chunks:
                self._stop_worker(w, "close", b"", now_us())
            else:
                w.retire(now_us())
        self._turn_until(now_us() + min(GRACE_US, 1_000_000), lambda: not self._workers)
        for w in list(self._workers.values()):
            w.kill()
        self._turn_until(now_us() + 5_000_000, lambda: not self._workers and not self._stopped.waiting)
        self._starts.stop()
        self._stopped.close()

    def _turn_until(self, deadline_us: int, over: Callable[[], bool]) -> None:
        while not over() and (now := now_us()) < deadline_us:
            wake = min(self.next_wake_us or deadline_us, deadline_us, now + 50_000)
            for fd in select.select(self.fds(), [], [], max(wake - now, 0) / 1e6)[0]:
                self.on_readable(fd)
            self.tick(now_us())
