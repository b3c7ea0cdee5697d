"""A concurrent.futures.Executor on the client: existing code runs on an endpoint by changing one line.

It does what the standard library documents for executors, with these words on what is left open there:
- `result()` raises the function's own exception where its type is a builtin (its `__cause__` is the TaskFailed with the
  remote traceback), else TaskFailed; TaskLost, TaskTimedOut ... as they are.
- `cancel()` of a future that is not done succeeds: the call is taken back, or ended where it runs.
- `map(chunksize=...)` has no effect, as in ThreadPoolExecutor: tasks travel in batches anyway.
- `shutdown(wait=True)` waits for all; those of `cancel_futures=True` are cancelled at the server as well.

Values are unpacked and callbacks run on one thread of the executor, never on the one that brings outcomes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from oncue.errors import OncueError, TaskCancelled, TaskFailed
from oncue.handles import Task

if TYPE_CHECKING:
    from oncue.client import Bound

R = TypeVar("R")
log = logging.getLogger("oncue.client")


class TaskFuture(Future[R]):
    """A Future with its `task`."""

    def __init__(self, task: Task[R], executor: OncueExecutor) -> None:
        super().__init__()
        self.task = task
        self._executor = executor
        self._claimed = False

    def _claim(self) -> bool:
        """On the executor's thread: whether an outcome may be put in. Waiters of a cancelled one are told, once."""
        if self._claimed:
            return False
        self._claimed = True
        return self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """True unless it is done: the call is taken back, or ended where it runs."""
        was = self.cancelled()
        if not super().cancel():
            return False
        if not was:
            self._executor._taken_back(self)
        return True


class OncueExecutor(Executor):
    """Made by `client.executor(endpoint=...)` or `client.with_options(...).executor()`."""

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[int, TaskFuture[Any]] = {}  # by id(): not done as far as callers were told
        self._news: SimpleQueue[tuple[str, TaskFuture[Any] | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._shut = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """All keywords go to the function. Raises RuntimeError after shutdown."""
        with self._lock:
            self._check()
            future = TaskFuture(self._bound.submit(fn, *args, **kwargs), self)
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
        is not there `timeout` seconds after this call; the tasks that are not done are cancelled then."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if more:
            raise TypeError(f"map() got an unexpected keyword argument {next(iter(more))!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._check()
            tasks = self._bound.starmap(fn, zip(*iterables, strict=False))
            futures: list[TaskFuture[R]] = [TaskFuture(task, self) for task in tasks]
            self._adopt(futures)
        return _in_order(self._listen(futures), deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more submits. Idempotent."""
        with self._lock:
            self._shut = True
            futures = list(self._open.values())
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            with self._lock:
                self._idle.wait_for(lambda: not self._open)
        self._end_if_idle()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    # ------------------------------------------------------------ within

    def _check(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _adopt(self, futures: list[TaskFuture[R]]) -> None:
        for future in futures:
            self._open[id(future)] = future
        if self._thread is None and futures:
            self._thread = threading.Thread(target=self._resolve, name="oncue-executor", daemon=True)
            self._thread.start()

    def _listen(self, futures: list[TaskFuture[R]]) -> list[TaskFuture[R]]:
        """Outside of the lock: a task that is done already calls back at once."""
        put = self._news.put
        for future in futures:
            future.task.add_done_callback(lambda _, future=future: put(("done", future)))  # type: ignore[misc]
        return futures

    def _taken_back(self, future: TaskFuture[Any]) -> None:
        """The server hears of it on the executor's thread, so that cancel() does not wait for the network."""
        self._news.put(("cancel", future))

    def _resolve(self) -> None:
        while True:
            what, future = self._news.get()
            if future is None:
                return
            try:
                if what == "cancel":
                    future._claim()
                    self._cancel(future)
                else:
                    settle(future)
            except Exception:  # the thread serves all futures
                log.exception("the outcome of task %s could not be told", future.task.id)
            with self._lock:
                self._open.pop(id(future), None)
                if not self._open:
                    self._idle.notify_all()
            del future  # a thread that waits must not keep the last value alive
            self._end_if_idle()

    def _cancel(self, future: TaskFuture[Any]) -> None:
        try:
            future.task.cancel()
        except OncueError as e:  # it goes on there; here it is cancelled, as the caller was told
            log.warning("task %s could not be cancelled at the server: %s", future.task.id, e.message)

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._shut and not self._open and self._thread is not None:
                self._news.put(("end", None))


def settle(future: TaskFuture[Any]) -> None:
    """Put the task's outcome into the future."""
    try:
        value = future.task.result()
    except TaskCancelled:
        Future.cancel(future)
        future._claim()
        return
    except TaskFailed as e:
        own = e.__cause__
        if own is not None:
            e.__cause__ = None
            own.__cause__ = e
        error: BaseException = own or e
    except BaseException as e:  # whatever unpickling raises belongs to the caller
        error = e
    else:
        if future._claim():
            future.set_result(value)
        return
    if future._claim():
        future.set_exception(error)


def _in_order(futures: list[TaskFuture[R]], deadline: float | None) -> Iterator[R]:
    """A generator that gives up what is left when it is closed or a result does not come."""
    futures.reverse()  # popped from the end, so that a result is not kept alive here
    try:
        while futures:
            future = futures.pop()
            try:
                yield future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except BaseException:
                future.cancel()
                raise
            finally:
                del future
    finally:
        for future in futures:
            future.cancel()
