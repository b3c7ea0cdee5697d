"""A pool of real workers and a minimal agent, for tests."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oncue.endpoint.pool.base import PoolEvents
from oncue.endpoint.pool.pool import Pool
from oncue.functions import Packed, pack_function
from oncue.ids import new_uuid7
from oncue.protocol.codec import decode
from oncue.protocol.payload import pack_args, unpack
from oncue.protocol.records import OK, Ended, Failure, TaskRecord
from oncue.protocol.run_options import RunOptions

LIMIT_S = 60.0


class Rig:
    """A pool and a minimal agent: a queue per function, and the outcomes."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.ended: list[Ended] = []
        self.requeued: list[TaskRecord] = []
        self.events = PoolEvents()
        #: Task id -> the arguments it was submitted with.
        self.packed: dict[bytes, tuple[Packed, int, RunOptions | None]] = {}

    def turn(self, wait_s: float = 0.5) -> None:
        now = time.time_ns() // 1000
        if self.pool.next_wake_us is not None:
            wait_s = min(wait_s, max(0.0, (self.pool.next_wake_us - now) / 1e6))
        for fd in select.select(self.pool.fds(), [], [], wait_s)[0]:
            self.pool.on_readable(fd)
        now = time.time_ns() // 1000
        if self.pool.next_wake_us is not None and now >= self.pool.next_wake_us:
            self.pool.tick(now)
        self.drain()

    def drain(self) -> None:
        events = self.pool.drain()
        self.ended += [e for _, _, ended in events.ended for e in ended]
        self.requeued += [t for _, _, tasks in events.requeue for t in tasks]
        self.events.started += events.started
        self.events.output += events.output

    def until(self, over: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not over():
            assert time.monotonic() < deadline, (self.ended, self.requeued, self.pool.trouble)
            self.turn()
        self.drain()  # what the pool said before a condition that was true at once

    def ready(self, n: int = 1) -> None:
        self.until(lambda: self.pool.ready >= n)

    def run(self, packed: Packed, *calls: tuple[Any, ...], timeout_ms: int = 0) -> list[TaskRecord]:
        """Run one chunk."""
        tasks = [TaskRecord(new_uuid7(), pack_args(c, {})) for c in calls]
        self.submit(packed, tasks, timeout_ms)
        return tasks

    def submit(
        self,
        packed: Packed,
        tasks: list[TaskRecord],
        timeout_ms: int = 0,
        attempt: int = 1,
        options: RunOptions | None = None,
    ) -> None:
        self.packed |= dict.fromkeys([t.id for t in tasks], (packed, timeout_ms, options))
        self.until(self.pool.room)
        self.pool.run(packed.id, packed.body, timeout_ms, attempt, tasks, options)

    def one(self, fn: Callable[..., Any], *args: Any, timeout_ms: int = 0) -> Ended:
        (task,) = self.run(pack_function(fn), args, timeout_ms=timeout_ms)
        return self.end_of(task)

    def end_of(self, task: TaskRecord) -> Ended:
        """Return the outcome; resubmit the task whenever the pool returns it.

        An agent does the same. On a busy machine any task may take long enough for the pool to
        return those behind it.
        """
        while True:
            self.until(lambda: any(x.id == task.id for x in (*self.ended, *self.requeued)))
            if again := [t for t in self.requeued if t.id == task.id]:
                self.requeued = [t for t in self.requeued if t.id != task.id]
                packed, timeout_ms, options = self.packed[task.id]
                self.submit(packed, again, timeout_ms, options=options)
                continue
            (found,) = [e for e in self.ended if e.id == task.id]
            return found

    def value(self, fn: Callable[..., Any], *args: Any) -> Any:
        ended = self.one(fn, *args)
        assert ended.status == OK, why(ended)
        return unpack(ended.value)

    def wait_for(self, path: Path) -> None:
        self.until(path.exists)


@contextlib.contextmanager
def rig_in(folder: Path, workers: int = 1, **options: Any) -> Iterator[Rig]:
    """Yield a rig whose workers are ready; no worker is left."""
    pool = Pool(workers, folder, **options)
    rig = Rig(pool, folder)
    try:
        rig.ready(workers)
        yield rig
    finally:
        pool.close(0)
        assert pool.pids == []


def why(ended: Ended) -> Failure:
    return decode(Failure, ended.value)


def script(source: str) -> Any:
    """Return the function `f` of a user's script without a file: it is pickled by value."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]
