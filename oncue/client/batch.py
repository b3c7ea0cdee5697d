"""Batch: tasks submitted in one request, and their outcomes.

A batch has one idempotency key and consecutive task ids. A task's id is the batch's first id plus
its index in the last 16 bits (see oncue.ids), so the first 14 bytes of an id identify its batch.
A task costs two list entries here. Locks exist only for threads that wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from oncue import ids
from oncue.client.options import Options
from oncue.errors import OncueError
from oncue.protocol.records import Ended

S = TypeVar("S")
BATCH_TASKS = 1_024
BATCH_BYTES = 8 * 1024 * 1024
ALL, ACCEPTED = -1, -2  # events that a thread can wait for, besides one task's index


class Batch(Generic[S]):
    """Up to BATCH_TASKS calls of one function with one set of options.

    `session` is not used here: handles reach it through their batch, and keep it alive.
    """

    __slots__ = (
        "accepted",
        "callbacks",
        "created_s",
        "ended",
        "ended_count",
        "error",
        "first",
        "function",
        "key",
        "listeners",
        "name",
        "options",
        "payloads",
        "pid",
        "prefix",
        "sealed",
        "session",
        "size_bytes",
        "waiters",
    )

    def __init__(self, session: S, subject: str, function: str, name: str, options: Options) -> None:
        self.session = session
        self.function = function
        self.name = name
        self.options = options
        self.key = ids.new_uuid7()
        first = ids.batch_ids(subject, self.key, 1)[0]
        self.first = int.from_bytes(first, "big")
        self.prefix = first[: ids.PREFIX]
        self.payloads: list[bytes] = []
        self.size_bytes = 0
        self.ended: list[Ended | None] = []
        self.ended_count = 0  # entries of `ended` that are not None
        self.sealed = False  # no task is added any more
        self.accepted = False  # durable on the server
        self.error: OncueError | None = None  # why the server rejected it
        self.waiters: dict[int, list[Callable[[], None]]] = {}
        self.callbacks: dict[int, list[Callable[[], None]]] = {}
        self.listeners: list[Callable[[Batch[S], list[int]], None]] = []
        self.pid = os.getpid()
        self.created_s = time.monotonic()

    @classmethod
    def of_task(cls, session: S, task_id: bytes) -> Batch[S]:
        """Return a batch of one task that this client did not submit.

        The outcome stream does not deliver its outcome: `pid` 0 is no process.
        """
        batch = cls(session, "", "", "", Options())
        batch.first, batch.prefix = int.from_bytes(task_id, "big"), task_id[: ids.PREFIX]
        batch.ended, batch.sealed, batch.pid = [None], True, 0
        return batch

    def add(self, payload: bytes) -> int:
        """Add a task and return its index. Call it with the sender's lock held."""
        self.payloads.append(payload)
        self.size_bytes += len(payload)
        self.ended.append(None)
        return len(self.ended) - 1

    @property
    def full(self) -> bool:
        return self.sealed or len(self.payloads) >= BATCH_TASKS or self.size_bytes >= BATCH_BYTES

    @property
    def complete(self) -> bool:
        """True if every task has its outcome."""
        return self.ended_count == len(self.ended)

    def id(self, index: int) -> bytes:
        return (self.first + index).to_bytes(16, "big")

    def open_ids(self) -> list[bytes]:
        """Return the ids of the tasks without an outcome."""
        return [self.id(i) for i, ended in enumerate(self.ended) if ended is None]

    def ready(self, event: int) -> bool:
        """True if `event` has happened, or never will.

        `event`: a task's index, ALL or ACCEPTED.
        """
        if self.error is not None:
            return True
        if event >= 0:
            return self.ended[event] is not None
        return self.accepted if event == ACCEPTED else self.sealed and self.complete

    def wait(self, event: int, deadline: float | None) -> bool:
        """Sleep until `event`, a wake_all(), or `deadline` (time.monotonic()).

        Return ready(event); it may return early.
        """
        lock = threading.Lock()
        lock.acquire()
        wake = lock.release
        self.waiters.setdefault(event, []).append(wake)
        if not self.ready(event):  # checked after the waiter was added: no wake-up is missed
            lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))
        if wake in (left := self.waiters.get(event, [])):
            left.remove(wake)
        return self.ready(event)

    def wake(self, event: int) -> None:
        for wake in self.waiters.pop(event, ()):
            wake()

    def wake_all(self) -> None:
        """Make every waiter check again, after a rejection or the loss of the server."""
        for event in list(self.waiters):
            self.wake(event)
        for listener in list(self.listeners):
            listener(self, [])

    def notify(self, indexes: list[int]) -> None:
        """Wake waiters and call callbacks of tasks whose outcomes were just stored."""
        if self.waiters:
            for index in indexes:
                self.wake(index)
            if self.ready(ALL):
                self.wake(ALL)
        if self.callbacks:
            for index in indexes:
                for callback in self.callbacks.pop(index, ()):
                    callback()
        for listener in list(self.listeners):
            listener(self, indexes)

    def reject(self, error: OncueError) -> None:
        """Set the error that every handle of this batch raises."""
        self.error = error
        self.payloads = []
        self.wake_all()
        for index in list(self.callbacks):
            for callback in self.callbacks.pop(index, ()):
                callback()
