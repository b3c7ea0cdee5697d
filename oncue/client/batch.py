"""Tasks that travel together: one request, one key, ids in a row; and what is known of how each ended.

A task of a batch costs two list entries. Locks exist only for threads that wait. A task's id is the batch's first id plus
its index: the last 16 bits (see oncue.ids), so an outcome finds its batch by the first 14 bytes of its id.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from oncue import ids
from oncue.errors import Invalid, OncueError
from oncue.protocol.api import RetryPolicy
from oncue.protocol.records import Ended

if TYPE_CHECKING:
    from oncue.client.client import Client

BATCH_TASKS = 1_024
BATCH_BYTES = 8 * 1024 * 1024
PREFIX = 14  # bytes of an id that all tasks of a batch share
ALL, ACCEPTED = -1, -2  # what a thread may wait for, beside one task's index


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """As the server streams them (dispatcher.backend.Outcome)."""

    id: bytes
    state: str
    ended: Ended


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When an attempt that ended badly is followed by another. Durations in seconds."""

    max: int = 3
    backoff: str = "exponential"  # or "constant"
    base: float = 2.0
    cap: float = 300.0
    on: tuple[str, ...] = ("lost", "error")  # of: lost, error, timeout

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            max=self.max,
            backoff=self.backoff,
            base_ms=round(self.base * 1000),
            cap_ms=round(self.cap * 1000),
            on=list(self.on),
        )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are to be run. `timeout` and `expires` in seconds: the longest run, and the latest start from now; without
    them there is no limit. Raises Invalid for a limit that is not above 0, and for retries below 0."""

    endpoint: str = "local"
    retry: Retry | int | None = None  # a number: so many retries, with the usual pauses
    timeout: float | None = None
    expires: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None:
            _check_limit("timeout", self.timeout)
        if self.expires is not None:
            _check_limit("expires", self.expires)
        most = self.retry.max if isinstance(self.retry, Retry) else self.retry
        if most is not None and most < 0:
            raise Invalid(
                f"retry is {most}; it is how often to try again: 0 or more", remedy="leave retry out for no retries"
            )

    def policy(self) -> RetryPolicy | None:
        if self.retry is None:
            return None
        return (Retry(max=self.retry) if isinstance(self.retry, int) else self.retry).policy()


def _check_limit(name: str, seconds: float) -> None:
    """What is sent is whole milliseconds, and 0 of them would be taken for no limit."""
    if not 0.001 <= seconds < float("inf"):
        raise Invalid(f"{name} is {seconds:g} s; a limit is at least 0.001 s", remedy=f"leave {name} out for no limit")


class Batch:
    """Up to BATCH_TASKS calls of one function with one set of options."""

    __slots__ = (
        "accepted",
        "callbacks",
        "client",
        "closed",
        "ended",
        "error",
        "first",
        "function",
        "key",
        "listeners",
        "made_s",
        "name",
        "options",
        "payloads",
        "pid",
        "prefix",
        "sealed",
        "size_bytes",
        "waiters",
    )

    def __init__(self, client: Client, subject: str, function: str, name: str, options: Options) -> None:
        self.client = client
        self.function = function
        self.name = name
        self.options = options
        self.key = ids.new_uuid7()
        first = ids.batch_ids(subject, self.key, 1)[0]
        self.first = int.from_bytes(first, "big")
        self.prefix = first[:PREFIX]
        self.payloads: list[bytes] = []
        self.size_bytes = 0
        self.ended: list[Ended | None] = []
        self.closed = 0  # how many of `ended` are there
        self.sealed = False  # no task joins any more
        self.accepted = False  # the server has them, durably
        self.error: OncueError | None = None  # the server would not take them
        self.waiters: dict[int, list[Callable[[], None]]] = {}
        self.callbacks: dict[int, list[Callable[[], None]]] = {}
        self.listeners: list[Callable[[Batch, list[int]], None]] = []
        self.pid = os.getpid()
        self.made_s = time.monotonic()

    def add(self, payload: bytes) -> int:
        """Under the courier's lock. Returns the task's index."""
        self.payloads.append(payload)
        self.size_bytes += len(payload)
        self.ended.append(None)
        return len(self.ended) - 1

    @property
    def full(self) -> bool:
        return self.sealed or len(self.payloads) >= BATCH_TASKS or self.size_bytes >= BATCH_BYTES

    def id(self, index: int) -> bytes:
        return (self.first + index).to_bytes(16, "big")

    def ready(self, what: int) -> bool:
        if self.error is not None:
            return True
        if what >= 0:
            return self.ended[what] is not None
        return self.accepted if what == ACCEPTED else self.sealed and self.closed == len(self.ended)

    def wait(self, what: int, deadline: float | None) -> bool:
        """Sleep until the task with this index has ended (or ALL, or they are ACCEPTED), the courier has something to
        say, or the deadline (time.monotonic()). Returns whether it is ready; may return early."""
        lock = threading.Lock()
        lock.acquire()
        wake = lock.release
        self.waiters.setdefault(what, []).append(wake)
        if not self.ready(what):  # looked again after the waiter was put down: no wake-up can be missed
            lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))
        if wake in (left := self.waiters.get(what, [])):
            left.remove(wake)
        return self.ready(what)

    def wake(self, what: int) -> None:
        for wake in self.waiters.pop(what, ()):
            wake()

    def wake_all(self) -> None:
        """Whoever waits shall look again: the batch was refused, or the server has gone."""
        for what in list(self.waiters):
            self.wake(what)
        for listener in list(self.listeners):
            listener(self, [])

    def told(self, indexes: list[int]) -> None:
        """These have just ended."""
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

    def refused(self, error: OncueError) -> None:
        self.error = error
        self.payloads = []
        self.wake_all()
        for index in list(self.callbacks):
            for callback in self.callbacks.pop(index, ()):
                callback()
