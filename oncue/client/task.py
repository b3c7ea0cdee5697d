"""Task: the handle that submit() returns.

A handle holds its batch, its index and, once requested, its value: it must stay cheap, as there may
be a million of them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from oncue.client import results
from oncue.client.awaiting import in_loop
from oncue.client.batch import ACCEPTED, Batch
from oncue.client.deadline import FOREVER, Deadline
from oncue.client.display import notebook
from oncue.client.display.logs import Logs
from oncue.client.files import OutputFile, ShellResult, save_all
from oncue.client.polling import poll
from oncue.client.resources import Tasks
from oncue.client.session import Session
from oncue.errors import Invalid, OncueError, ShellFailed, TaskError
from oncue.ids import parse
from oncue.protocol import payload
from oncue.protocol.api import TaskInfo, TimelineEntry
from oncue.protocol.records import OK, Ended
from oncue.task_lifecycle import state_text

R = TypeVar("R")
log = logging.getLogger("oncue.client")
_UNKNOWN: Any = object()


class Task(Generic[R]):
    """One call of one function. All methods are thread-safe.

    Methods that wait raise TimeoutError after `timeout` seconds, and Unreachable when the server is
    away for longer than the client's patience. The task itself goes on then, if the server has
    accepted it. submit() does not wait for that, so errors of the request are raised here.
    """

    __slots__ = ("_batch", "_index", "_value")

    def __init__(self, batch: Batch[Session], index: int) -> None:
        self._batch = batch
        self._index = index
        self._value: Any = _UNKNOWN

    @property
    def id(self) -> str:
        """Task id, 32 hex digits; known before the server has answered."""
        return self._batch.id(self._index).hex()

    @property
    def endpoint(self) -> str:
        """Name of the endpoint, as given to submit()."""
        return self._batch.options.endpoint

    @property
    def name(self) -> str:
        """Name of the function."""
        return self._batch.name

    def __repr__(self) -> str:
        return f"<oncue task {self.id} {self.name} {state_text(self._ended())}>"

    def _repr_html_(self) -> str:
        return notebook.task_table(self)

    # ------------------------------------------------------------ the outcome

    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the value in an event loop, which goes on. Raises as result() does."""
        return in_loop(self._batch, self._index, self.result).__await__()

    def result(self, timeout: float | None = None) -> R:
        """Wait for the value and return it.

        Raises what the function raised, as itself if its class is to be had here (its `__cause__`
        is the TaskFailed with the endpoint's traceback), else TaskFailed. Also TaskLost,
        TaskTimedOut, TaskCancelled, TaskExpired, TaskRefused; UntrustedResult, UnreadableResult;
        the error with which the server rejected the task; TimeoutError.
        """
        __tracebackhide__ = True  # IPython and pytest show the caller's frames
        return self._result(FOREVER if timeout is None else Deadline(timeout))

    def _result(self, limit: Deadline, reports: bool = True) -> R:
        __tracebackhide__ = True
        if self._value is not _UNKNOWN:
            return cast(R, self._value)
        ended = self._batch.ended[self._index]
        if ended is not None and ended.status == OK and ended.value[:1] == payload.MSGPACK:  # fast
            self._value = payload.unpack(ended.value)
            return cast(R, self._value)
        ended = self._outcome(limit, reports)
        if ended.status != OK:
            raise self._error(ended)
        session, task_id = self._batch.session, self._batch.id(self._index)
        value = results.value(ended, task_id, self.endpoint, session.fetch, self._trusted)
        if ended.value[:1] == payload.FILES and payload.with_files(ended.value).shell and isinstance(value, dict):
            value = ShellResult(value, self._files(ended))
        self._value = value
        return cast(R, self._value)

    def _settled(self, limit: Deadline, reports: bool = True) -> R | BaseException:
        """Return the value, or the exception with which it ended.

        Raises what says nothing of the task: TimeoutError, Unreachable, its rejection.
        """
        ended = self._outcome(limit, reports)
        if ended.status != OK:
            return self._error(ended)
        try:
            return self._result(limit, reports)
        except TaskError as e:  # the value cannot be read here
            return e

    def _error(self, ended: Ended) -> BaseException:
        error = results.error(ended, self._batch.id(self._index), self.name, self._trusted)
        if isinstance(error, ShellFailed):
            error.files = tuple(self._files(ended))
        return error

    def _files(self, ended: Ended) -> list[OutputFile]:
        return [OutputFile(file, self._tasks._stream) for file in results.files(ended)]

    def _trusted(self) -> bool:
        return self._batch.session.trusts(self.endpoint)

    def files(self, timeout: float | None = None) -> list[OutputFile]:
        """Wait; return the files that it has left, however it has ended.

        They are those of its `outputs`, and the stdout and stderr of a shell function. Raises
        TimeoutError.
        """
        return self._files(self._outcome(Deadline(timeout)))

    def save_files(self, folder: str | os.PathLike[str], timeout: float | None = None) -> list[Path]:
        """Wait; save the files that it has left below a folder. Return their paths.

        Raises TimeoutError, BlobMissing, Unreachable, OSError.
        """
        return save_all(self.files(timeout), folder)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait; return what result() raises for it, or None. Raises TimeoutError."""
        try:
            ended = self._outcome(Deadline(timeout))
        except OncueError as e:
            if e is self._batch.error:
                return e
            raise
        return None if ended.status == OK else self._error(ended)

    def done(self) -> bool:
        """True if it has ended, as far as this client knows."""
        return self._ended() is not None or self._batch.error is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended in any way; return False on timeout."""
        try:
            self._outcome(Deadline(timeout), reports=False)
        except TimeoutError:
            return False
        except OncueError as e:
            if e is not self._batch.error:
                raise
        return True

    def _ended(self) -> Ended | None:
        return self._batch.ended[self._index]

    def _outcome(self, limit: Deadline, reports: bool = True) -> Ended:
        """Wait for the outcome. `reports`: the caller sees what is raised here."""
        batch = self._batch
        ended = batch.ended[self._index]
        if ended is not None:
            return ended
        if batch.pid != os.getpid():
            return poll(batch, self._index, limit)
        outcomes = batch.session.outcomes
        while (ended := batch.ended[self._index]) is None:
            if batch.error is not None:
                if reports:
                    self._mark_reported()
                raise batch.error
            if outcomes.gone is not None:
                raise outcomes.gone
            if not batch.wait(self._index, limit.deadline) and limit.past:
                raise TimeoutError(self._timeout_text(limit))
        return ended

    def _mark_reported(self) -> None:
        """Record that the caller has seen the rejection: close() does not repeat it."""
        self._batch.session.sender.unaccepted.mark_reported(self._batch)

    def _timeout_text(self, limit: Deadline) -> str:
        if self._batch.accepted:
            return f"task {self.id} has not ended in {limit}; it goes on"
        trouble = self._batch.session.sender.trouble
        why = f" ({trouble.message})" if trouble is not None else ""
        return f"the server has not accepted task {self.id} in {limit}{why}; it is sent on while this client is open"

    def add_done_callback(self, callback: Callable[[Task[R]], None]) -> None:
        """Call `callback(task)` when the task has ended, or at once if it has.

        It runs on the thread that receives outcomes, so it must be brief; its exceptions are
        logged. The handle of a task that another client submitted calls back only when its outcome
        was requested (result, wait, as_completed).
        """
        batch, index = self._batch, self._index

        def call() -> None:
            try:
                callback(self)
            except Exception:
                log.exception("a callback of task %s failed", self.id)

        batch.callbacks.setdefault(index, []).append(call)
        if self.done():  # perhaps it ended before the callback was added: nobody else calls it then
            for found in batch.callbacks.pop(index, ()):
                found()

    # ------------------------------------------------------------ requests

    def _wait_accepted(self) -> str:
        """Wait until the server has accepted it; return the id. Raises the rejection."""
        batch, outcomes = self._batch, self._batch.session.outcomes
        while batch.pid == os.getpid() and not batch.ready(ACCEPTED):
            if outcomes.gone is not None:
                raise outcomes.gone
            batch.wait(ACCEPTED, time.monotonic() + 60)
        if batch.error is not None:
            self._mark_reported()
            raise batch.error
        return self.id

    @property
    def _tasks(self) -> Tasks:
        return Tasks(self._batch.session)

    def info(self) -> TaskInfo:
        """Return the server's information on it. Raises NotFound, Unreachable."""
        return self._tasks.get(self._wait_accepted())

    def status(self) -> str:
        """Return its state as a word.

        One of waiting, retrying, running, cancelling; succeeded, failed, lost, timed_out,
        cancelled, expired, refused.
        """
        ended = self._ended()
        return self.info().state if ended is None else state_text(ended)

    def cancel(self) -> None:
        """Request cancellation, also while it runs.

        If that is in time, result() raises TaskCancelled; else it returns or raises as usual.
        """
        if not self.done():
            self._tasks.cancel([self._wait_accepted()])

    def _is_at_endpoint(self) -> bool:
        """True if it is known to be at its endpoint now."""
        if self.done() or not self._batch.accepted:
            return False
        try:
            return self.info().sent
        except OncueError:
            return False

    def retry(self) -> Task[R]:
        """Submit the same call again, as a new task."""
        return TaskById(self._batch.session, parse(self._tasks.retry(self._wait_accepted()).id))

    def logs(self, follow: bool = False) -> Logs:
        """Return its printed output; iterate over it with `follow`, until it has ended."""
        task_id, tasks = self._wait_accepted(), self._tasks
        return Logs(lambda: tasks.logs(task_id, follow=follow))

    def timeline(self) -> list[TimelineEntry]:
        return self._tasks.timeline(self._wait_accepted())


class TaskById(Task[R]):
    """Handle of a task that this client did not submit; its outcome is polled.

    A task that the server does not know (or that is not yours) is waited for only a moment, as
    another process may be submitting it. After that, methods that wait raise NotFound.
    """

    __slots__ = ("_info",)

    def __init__(self, session: Session, task_id: bytes) -> None:
        super().__init__(Batch.of_task(session, task_id), 0)
        self._info: TaskInfo | None = None

    @classmethod
    def from_hex(cls, session: Session, task_id: str) -> TaskById[R]:
        """Return the handle of a task id in hex. Raises Invalid."""
        try:
            return cls(session, parse(task_id))
        except ValueError as e:
            raise Invalid(f"{task_id!r} is not a task's id: {e}", remedy="it has 32 hex digits") from None

    def _cached_info(self) -> TaskInfo:
        if self._info is None:
            self._info = self.info()
        return self._info

    @property
    def endpoint(self) -> str:
        return self._cached_info().endpoint

    @property
    def name(self) -> str:
        return self._info.name if self._info else ""

    def _trusted(self) -> bool:
        found = self._cached_info()
        return self._batch.session.trusts(found.endpoint, found.endpoint_id)
