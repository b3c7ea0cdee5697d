"""What submit() gives: a handle of one task. It holds its batch and its index, and nothing else until somebody asks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from oncue import payload, verdicts
from oncue.batches import ACCEPTED, ALL, Batch, Options
from oncue.errors import NotReady, OncueError, RateLimited, TaskError, Unreachable
from oncue.lifecycle import CLOSED_AS
from oncue.messages import OK, Ended
from oncue.resources import TaskInfo, TimelineEntry

if TYPE_CHECKING:
    from oncue.client import Client

R = TypeVar("R")
log = logging.getLogger("oncue.client")
_UNKNOWN: Any = object()
ASK_MS = 10_000  # held by the server, where an outcome has to be asked for


class Task(Generic[R]):
    """One call of one function, on its way. All methods may be called from any thread.

    What waits raises TimeoutError after `timeout` seconds, and Unreachable when the server has been away for longer than
    the client's patience; the task itself goes on then."""

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
        UntrustedResult; the error with which the server refused the task; TimeoutError."""
        if self._value is not _UNKNOWN:
            return cast(R, self._value)
        ended = self._batch.ended[self._index]
        if ended is not None and ended.status == OK and ended.value[:1] == payload.MSGPACK:  # the usual case, cheaply
            self._value = payload.unpack(ended.value)
            return cast(R, self._value)
        client = self._client
        self._value = verdicts.value(
            self._outcome(timeout),
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
            ended = self._outcome(timeout)
        except OncueError as e:
            if e is self._batch.error:
                return e
            raise
        return None if ended.status == OK else verdicts.error(ended, self._batch.id(self._index), self.name)

    def done(self) -> bool:
        """Whether it has ended, as far as this client was told."""
        return self._ended() is not None or self._batch.error is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, however it is; False when the time was up."""
        try:
            self._outcome(timeout)
        except TimeoutError:
            return False
        except OncueError as e:
            if e is not self._batch.error:
                raise
        return True

    def _ended(self) -> Ended | None:
        return self._batch.ended[self._index]

    def _outcome(self, timeout: float | None) -> Ended:
        batch = self._batch
        ended = batch.ended[self._index]
        if ended is not None:
            return ended
        deadline = None if timeout is None else time.monotonic() + timeout
        if batch.pid != os.getpid():
            return self._asked(deadline)
        courier = self._client.courier
        while (ended := batch.ended[self._index]) is None:
            if batch.error is not None:
                raise batch.error
            if courier.gone is not None:
                raise courier.gone
            if not batch.wait(self._index, deadline) and _past(deadline):
                raise TimeoutError(f"task {self.id} has not ended in {timeout:g} s; it goes on")
        return ended

    def _asked(self, deadline: float | None) -> Ended:
        """Where no stream brings the outcome (a handle from elsewhere; a forked child): ask, and let the server hold the
        question."""
        courier = self._client.courier
        me, since, pause = self._batch.id(self._index), time.monotonic(), 0.05
        while True:
            asked = time.monotonic()
            left = ASK_MS if deadline is None else max(0, min(ASK_MS, round((deadline - asked) * 1000)))
            try:
                for outcome in courier.ask([me], left):
                    self._found(outcome.ended)
                    return outcome.ended
                since = time.monotonic()
            except (Unreachable, NotReady, RateLimited):
                if time.monotonic() - since > courier.patience_s:
                    raise
            if _past(deadline):
                raise TimeoutError(f"task {self.id} has not ended in time; it goes on")
            if time.monotonic() - asked < 0.5:  # the server did not hold the question
                time.sleep(pause)
                pause = min(1.0, pause * 2)

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


class FoundTask(Task[R]):
    """A task that this client did not submit: its outcome is asked for."""

    __slots__ = ("_given", "_info", "_task")

    def __init__(self, client: Client, task_id: bytes) -> None:
        self._given, self._task = client, task_id
        self._info: TaskInfo | None = None
        super().__init__(_Single(client, task_id), 0)

    def _known(self) -> TaskInfo:
        if self._info is None:
            self._info = self.info()
        return self._info

    @property
    def endpoint(self) -> str:
        return self._known().endpoint

    @property
    def name(self) -> str:
        return self._info.name if self._info else ""

    def _trusted(self) -> bool:
        found = self._known()
        return self._client.trusts(found.endpoint, found.endpoint_id)


class _Single(Batch):
    """A batch of one, of an id that is known; its outcome comes by no stream (pid 0 is no process of ours)."""

    __slots__ = ()

    def __init__(self, client: Client, task_id: bytes) -> None:
        super().__init__(client, "", "", "", Options())
        self.first, self.prefix = int.from_bytes(task_id, "big"), task_id[:14]
        self.ended, self.sealed, self.accepted, self.pid = [None], True, True, 0


def _past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def as_completed(tasks: Iterable[Task[R]], timeout: float | None = None) -> Iterator[Task[R]]:
    """The tasks in the order in which they end, however they end. Raises TimeoutError when some are open after `timeout`
    seconds in all, Unreachable when the server stays away."""
    deadline = None if timeout is None else time.monotonic() + timeout
    wanted: dict[tuple[int, int], Task[R]] = {(id(t._batch), t._index): t for t in tasks}
    news: SimpleQueue[tuple[Batch, list[int]]] = SimpleQueue()
    batches = {id(t._batch): t._batch for t in wanted.values()}

    def note(batch: Batch, indexes: list[int]) -> None:
        news.put((batch, indexes))

    for batch in batches.values():
        batch.listeners.append(note)
    try:
        for key, task in list(wanted.items()):
            if task.done() and wanted.pop(key, None) is not None:
                yield task
        while wanted:
            yield from _news(news, wanted, deadline)
    finally:
        for batch in batches.values():
            batch.listeners.remove(note)


def _news(
    news: SimpleQueue[tuple[Batch, list[int]]], wanted: dict[tuple[int, int], Task[R]], deadline: float | None
) -> Iterator[Task[R]]:
    foreign = [t for t in wanted.values() if t._batch.pid != os.getpid()]
    left = None if deadline is None else deadline - time.monotonic()
    if foreign:
        left = 0.2 if left is None else min(left, 0.2)
        _ask(foreign)
    try:
        batch, indexes = news.get(timeout=left if left is None else max(0.0, left))
        keys = [(id(batch), i) for i in indexes] or [k for k in wanted if k[0] == id(batch)]
    except Empty:
        keys = [(id(t._batch), t._index) for t in foreign]
        if _past(deadline):
            raise TimeoutError(f"{len(wanted)} tasks have not ended in time; they go on") from None
    for key in keys:
        task = wanted.get(key)
        if task is not None and task.done():
            del wanted[key]
            yield task
    gone = next(iter(wanted.values()))._client.courier.gone if wanted else None
    if gone is not None:
        raise gone


def _ask(tasks: list[Task[Any]]) -> None:
    by_id = {t._batch.id(t._index): t for t in tasks if not t.done()}
    if by_id:
        for outcome in tasks[0]._client.courier.ask(list(by_id)):
            by_id[outcome.id]._found(outcome.ended)


def _await_whole(tasks: list[Task[R]], deadline: float | None) -> None:
    """Wait for batches all of whose tasks are wanted: one wake-up a batch instead of one a task. What goes wrong is left
    for result() to raise."""
    counts: dict[int, int] = {}
    for task in tasks:
        key = id(task._batch)
        counts[key] = counts.get(key, 0) + 1
    for batch in {id(t._batch): t._batch for t in tasks}.values():
        if batch.pid != os.getpid() or not batch.sealed or counts[id(batch)] < len(batch.ended):
            continue
        while not batch.ready(ALL) and batch.client.courier.gone is None and not _past(deadline):
            batch.wait(ALL, deadline)


def gather(
    tasks: Iterable[Task[R]],
    timeout: float | None = None,
    *,
    return_exceptions: bool = False,
    each: Callable[[int, int], None] | None = None,
) -> list[R | TaskError]:
    """The results in the order of the tasks; waits for all. `each(done, of)` is called as they end.

    Raises the first error (in the order of the tasks) unless `return_exceptions`; TimeoutError."""
    tasks = list(tasks)
    deadline = None if timeout is None else time.monotonic() + timeout
    if each is not None:
        for done, _ in enumerate(as_completed(tasks, timeout), 1):
            each(done, len(tasks))
    _await_whole(tasks, deadline)
    results: list[R | TaskError] = []
    for task in tasks:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not return_exceptions:
            results.append(task.result(left))
            continue
        try:
            results.append(task.result(left))
        except TaskError as e:
            results.append(e)
    return results
