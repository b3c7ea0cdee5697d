"""A concurrent.futures.Executor on the client: existing code runs on an endpoint by changing one line.

It keeps what the standard library documents for executors, with these words on what is left open there:
- A call *runs* from when the server has sent it to its endpoint (as ProcessPoolExecutor counts what is in its workers'
  queue). The server is asked when somebody wants to know: by `running()` and `cancel()`. A future is never RUNNING before.
- `cancel()` of a call that runs is False and leaves it alone; `future.task.cancel()` ends it where it runs.
- `result()` raises the function's own exception where its type is a builtin (its `__cause__` is the TaskFailed with the
  remote traceback), else TaskFailed; TaskLost, TaskTimedOut ... as they are; CancelledError for a task that somebody else
  cancelled, but TaskCancelled where this future was known to run. When the server stays away for longer than the client's
  patience, Unreachable: the task goes on, and `future.task.result()` may be asked later.
- A function or argument that cannot be shipped raises CannotPack at once, from `submit()` or `map()`.
- `map(chunksize=...)` has no effect, as in ThreadPoolExecutor: tasks travel in batches anyway.
- A program does not end before its futures are done, whether `shutdown()` was called or not. To leave calls alone, submit
  them with the client instead.

Values are unpacked and callbacks run on one thread of the executor, never on the one that brings outcomes. It lives as long
as futures are open.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from oncue.client.deadline import FOREVER
from oncue.client.task import Task
from oncue.errors import OncueError, TaskCancelled, TaskFailed

if TYPE_CHECKING:
    from oncue.client.client import BoundClient

R = TypeVar("R")
log = logging.getLogger("oncue.client")
LOOK_S = 1.0  # while futures are open: whether the server has gone for good
LINGER_S = 0.05  # that the thread waits for more, so that a loop of single calls does not start one each time
CANCEL_AT_ONCE = 10_000  # ids in one request; the server takes no more


class TaskFuture(Future[R]):
    """A Future with its `task`."""

    def __init__(self, task: Task[R], executor: OncueExecutor) -> None:
        super().__init__()
        self.task = task
        self._executor = executor
        self._begun = False

    def _begin(self) -> bool:
        """It runs, or has ended: an outcome may be put in. False when it was cancelled; its waiters are told then."""
        with self._condition:
            if not self._begun:
                self._begun = True
                return self.set_running_or_notify_cancel()
            return not self.cancelled()

    def result(self, timeout: float | None = None) -> R:
        try:
            return super().result(timeout)
        finally:
            self._told()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        finally:
            self._told()

    def _told(self) -> None:
        """What the server said against the call is known to the future's holder now."""
        if self.done():
            self.task._told()

    def cancel(self) -> bool:
        """Take the call back if it has not been sent to its endpoint. False when it runs there (it is left alone), has
        ended, or the server cannot be asked. Waits for the server's answer."""
        if not self.done() and not self._begun:
            self._executor._take_back([self])
        return self.cancelled()

    def running(self) -> bool:
        """Whether the call is at its endpoint, as far as the server can be asked, and has not ended."""
        if not self.done() and not self._begun and self.task._at_endpoint():
            self._begin()
        return super().running()


class OncueExecutor(Executor):
    """Made by `client.executor(endpoint=...)` or `client.with_options(...).executor()`."""

    def __init__(self, bound: BoundClient) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[int, TaskFuture[Any]] = {}  # by id(): not done as far as callers were told
        self._news: SimpleQueue[TaskFuture[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._shut = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """All keywords go to the function. Raises RuntimeError after shutdown; CannotPack."""
        with self._lock:
            self._check()
            future = TaskFuture(self._bound.client.call(fn, args, kwargs, self._bound.options), self)
            self._adopt([future])
        return self._listen([future])[0]

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[R]:
        """As Executor.map: the iterables are read at once, results come in their order. Raises TimeoutError when a result
        is not there `timeout` seconds after this call; calls that do not run yet are cancelled then."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if more:
            raise TypeError(f"map() got an unexpected keyword argument {next(iter(more))!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = list(zip(*iterables, strict=False))  # outside of the lock: an iterable may use this executor
        with self._lock:
            self._check()
            futures: list[TaskFuture[R]] = [TaskFuture(task, self) for task in self._bound.starmap(fn, calls)]
            self._adopt(futures)
        return _in_order(self._listen(futures), deadline, self._take_back)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more submits. Idempotent. `cancel_futures`: those that do not run yet are cancelled; `wait`: until the others
        are done. Raises RuntimeError when a callback of a future waits here, since it would wait for itself."""
        with self._lock:
            self._shut = True
            futures = list(self._open.values())
        if cancel_futures:
            self._take_back(futures)
        thread = self._thread
        if wait and thread is threading.current_thread():
            raise RuntimeError("cannot wait for the executor in a callback of its futures")
        if wait:
            with self._lock:
                self._idle.wait_for(lambda: not self._open)
        self._news.put(None)
        if wait and thread is not None:
            thread.join()

    # ------------------------------------------------------------ within

    def _check(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _adopt(self, futures: Sequence[TaskFuture[Any]]) -> None:
        """Under the lock."""
        self._open |= {id(future): future for future in futures}
        if self._thread is None and futures:
            # No daemon: the program goes on until its futures are done.
            self._thread = threading.Thread(target=self._resolve, name="oncue-executor", daemon=False)
            self._thread.start()

    def _listen(self, futures: list[TaskFuture[R]]) -> list[TaskFuture[R]]:
        """Outside of the lock: a task that is done already calls back at once."""
        put = self._news.put
        for future in futures:
            future.task.add_done_callback(lambda _, future=future: put(future))  # type: ignore[misc]
        return futures

    def _resolve(self) -> None:
        """The thread. It ends when nothing is open and nothing new comes."""
        while True:
            future = None  # a thread that waits must not keep the last value alive
            try:
                future = self._news.get(timeout=LOOK_S if self._open else LINGER_S)
            except Empty:
                self._fail_if_gone()
            if future is not None:
                try:
                    settle(future)
                except Exception as e:  # the thread serves all futures
                    log.exception("the outcome of task %s could not be told", future.task.id)
                    _give_up(future, e)
                self._close([future])
            elif self._may_end():
                return

    def _may_end(self) -> bool:
        with self._lock:
            if self._open:
                return False
            self._thread = None
            return True

    def _close(self, futures: Iterable[TaskFuture[Any]]) -> None:
        with self._lock:
            for future in futures:
                self._open.pop(id(future), None)
            if not self._open:
                self._idle.notify_all()

    def _fail_if_gone(self) -> None:
        """The server stays away, or the client was closed: nobody would bring these outcomes."""
        gone = self._bound.client.courier.gone
        if gone is not None:
            futures = list(self._open.values())
            for future in futures:
                _give_up(future, gone)
            self._close(futures)

    def _take_back(self, futures: Sequence[TaskFuture[Any]]) -> None:
        """Cancel those that do not run; the others are known to run then."""
        pending: dict[str, TaskFuture[Any]] = {}
        for future in futures:
            if not future.done() and not future._begun:
                with contextlib.suppress(OncueError):  # it was refused: its outcome says that
                    pending[future.task._accepted()] = future
        wanted, taken = list(pending), set[str]()
        try:
            for start in range(0, len(wanted), CANCEL_AT_ONCE):
                part = wanted[start : start + CANCEL_AT_ONCE]
                taken.update(self._bound.client.tasks.cancel(part, waiting=True))
        except OncueError as e:  # it cannot be known whether they run: they go on
            log.warning("%d calls could not be cancelled: %s", len(pending), e.message)
            return
        for task_id, future in pending.items():
            if task_id in taken:
                Future.cancel(future)
            future._begin()
        self._close([f for f in pending.values() if f.cancelled()])


def settle(future: TaskFuture[Any]) -> None:
    """Put the task's outcome into the future."""
    if future.done():  # cancelled, or given up
        return
    try:
        value = future.task._result(FOREVER, tells=False)
    except TaskCancelled as e:
        if Future.cancel(future):  # unless it is known to run
            future._begin()
            return
        error: BaseException = e
    except TaskFailed as e:
        own = e.__cause__
        if own is not None:
            e.__cause__ = None
            own.__cause__ = e
        error = own or e
    except BaseException as e:  # whatever unpickling raises belongs to the caller
        error = e
    else:
        if future._begin():
            future.set_result(value)
        return
    _give_up(future, error)


def _give_up(future: TaskFuture[Any], error: BaseException) -> None:
    if not future.done() and future._begin():
        future.set_exception(error)


def _in_order(
    futures: list[TaskFuture[R]],
    deadline: float | None,
    take_back: Callable[[Sequence[TaskFuture[Any]]], None],
) -> Iterator[R]:
    """A generator that gives up what is left when it is closed or a result does not come."""
    futures.reverse()  # popped from the end, so that a result is not kept alive here
    try:
        while futures:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(CancelledError):  # result() raises it
                futures[-1].exception(left)  # while it waits it is in the list, and so among those to take back
            yield futures.pop().result()
    finally:
        take_back(futures)
