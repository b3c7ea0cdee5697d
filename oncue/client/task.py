"""What submit() gives: a handle of one task. It holds its batch and its index, and nothing else until somebody asks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from oncue.client import results
from oncue.client.batch import ACCEPTED, Batch
from oncue.client.deadline import FOREVER, Deadline
from oncue.client.polling import asked
from oncue.errors import OncueError
from oncue.lifecycle import CLOSED_AS
from oncue.protocol import payload
from oncue.protocol.api import TaskInfo, TimelineEntry
from oncue.protocol.records import OK, Ended

if TYPE_CHECKING:
    from oncue.client.client import Client

R = TypeVar("R")
log = logging.getLogger("oncue.client")
_UNKNOWN: Any = object()


class Task(Generic[R]):
    """One call of one function, on its way. All methods may be called from any thread.

    What waits raises TimeoutError after `timeout` seconds, and Unreachable when the server has been away for longer than
    the client's patience; the task itself goes on then, if the server has accepted it: submit() does not wait for that,
    and what the server says against the task is raised here."""

    __slots__ = ("_batch", "_index", "_value")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index
        self._value: Any = _UNKNOWN

    @property
    def id(self) -> str:
        """32 hex digits; known before the server has answered."""
        return self._batch.id(self._index).hex()

    @property
    def _client(self) -> Client:
        return self._batch.client

    @property
    def endpoint(self) -> str:
        """The name that was given for it."""
        return self._batch.options.endpoint

    @property
    def name(self) -> str:
        """The function's."""
        return self._batch.name

    def __repr__(self) -> str:
        ended = self._ended()
        state = "open" if ended is None else CLOSED_AS[ended.status].name.lower()
        return f"<oncue task {self.id} {self.name} {state}>"

    # ------------------------------------------------------------ the outcome

    def result(self, timeout: float | None = None) -> R:
        """Wait for the value. Raises TaskFailed, TaskLost, TaskTimedOut, TaskCancelled, TaskExpired, TaskRefused;
        UntrustedResult, UnreadableResult; the error with which the server refused the task; TimeoutError."""
        return self._result(FOREVER if timeout is None else Deadline(timeout))

    def _result(self, limit: Deadline, tells: bool = True) -> R:
        if self._value is not _UNKNOWN:
            return cast(R, self._value)
        ended = self._batch.ended[self._index]
        if ended is not None and ended.status == OK and ended.value[:1] == payload.MSGPACK:  # the usual case, cheaply
            self._value = payload.unpack(ended.value)
            return cast(R, self._value)
        client = self._client
        self._value = results.value(
            self._outcome(limit, tells),
            self._batch.id(self._index),
            self.name,
            self.endpoint,
            client.fetch,
            self._trusted,
        )
        return cast(R, self._value)

    def _trusted(self) -> bool:
        return self._client.trusts(self.endpoint)

    def exception(self, timeout: float | None = None) -> OncueError | None:
        """Wait; the error with which it ended, or None. Raises TimeoutError."""
        try:
            ended = self._outcome(Deadline(timeout))
        except OncueError as e:
            if e is self._batch.error:
                return e
            raise
        return None if ended.status == OK else results.error(ended, self._batch.id(self._index), self.name)

    def done(self) -> bool:
        """Whether it has ended, as far as this client was told."""
        return self._ended() is not None or self._batch.error is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, however it is; False when the time was up."""
        try:
            self._outcome(Deadline(timeout), tells=False)
        except TimeoutError:
            return False
        except OncueError as e:
            if e is not self._batch.error:
                raise
        return True

    def _ended(self) -> Ended | None:
        return self._batch.ended[self._index]

    def _outcome(self, limit: Deadline, tells: bool = True) -> Ended:
        """`tells`: the caller of the handle sees what is raised here."""
        batch = self._batch
        ended = batch.ended[self._index]
        if ended is not None:
            return ended
        if batch.pid != os.getpid():
            return asked(self, limit)
        courier = self._client.courier
        while (ended := batch.ended[self._index]) is None:
            if batch.error is not None:
                if tells:
                    self._told()
                raise batch.error
            if courier.gone is not None:
                raise courier.gone
            if not batch.wait(self._index, limit.deadline) and limit.past:
                raise TimeoutError(self._late(limit))
        return ended

    def _told(self) -> None:
        """The caller knows what the server said against it; the client's end need not say that."""
        self._client.courier.untold.told(self._batch)

    def _late(self, limit: Deadline) -> str:
        if self._batch.accepted:
            return f"task {self.id} has not ended in {limit}; it goes on"
        trouble = self._client.courier.trouble
        why = f" ({trouble.message})" if trouble is not None else ""
        return f"the server has not accepted task {self.id} in {limit}{why}; it is sent on while this client is open"

    def _found(self, ended: Ended) -> None:
        self._batch.ended[self._index] = ended
        for callback in self._batch.callbacks.pop(self._index, ()):
            callback()

    def add_done_callback(self, callback: Callable[[Task[R]], None]) -> None:
        """Call back when it has ended (at once if it has), on the thread that brings outcomes: be brief there.
        What the callback raises is logged. A handle of a task that another client submitted calls back only when its
        outcome was asked for (result, wait, as_completed)."""
        batch, index = self._batch, self._index

        def call() -> None:
            try:
                callback(self)
            except Exception:
                log.exception("a callback of task %s failed", self.id)

        batch.callbacks.setdefault(index, []).append(call)
        if self.done():  # perhaps between the question and the note: then nobody else calls
            for found in batch.callbacks.pop(index, ()):
                found()

    # ------------------------------------------------------------ the task itself

    def _accepted(self) -> str:
        """Wait until the server has it. Returns the id. Raises what it was refused with."""
        batch, courier = self._batch, self._client.courier
        while batch.pid == os.getpid() and not batch.ready(ACCEPTED):
            if courier.gone is not None:
                raise courier.gone
            batch.wait(ACCEPTED, time.monotonic() + 60)
        if batch.error is not None:
            self._told()
            raise batch.error
        return self.id

    def info(self) -> TaskInfo:
        """All that the server knows of it. Raises NotFound, Unreachable."""
        return self._client.tasks.get(self._accepted())

    def status(self) -> str:
        """waiting, retrying, running, cancelling; succeeded, failed, lost, timed_out, cancelled, expired, refused."""
        ended = self._ended()
        return self.info().state if ended is None else CLOSED_AS[ended.status].name.lower()

    def cancel(self) -> None:
        """Ask for its end, also while it runs. Whether that came in time its outcome says: result() then raises
        TaskCancelled."""
        if not self.done():
            self._client.tasks.cancel([self._accepted()])

    def _at_endpoint(self) -> bool:
        """Whether it is known to be at its endpoint now; not asked before the server has it."""
        if self.done() or not self._batch.accepted:
            return False
        try:
            return self.info().sent
        except OncueError:
            return False

    def retry(self) -> Task[R]:
        """A new task with the same call."""
        return self._client.task(self._client.tasks.retry(self._accepted()).id)

    def logs(self, follow: bool = False) -> Iterator[str]:
        """What it printed, in pieces as they come; follow: until it has ended."""
        return self._client.tasks.logs(self._accepted(), follow=follow)

    def timeline(self) -> list[TimelineEntry]:
        return self._client.tasks.timeline(self._accepted())
