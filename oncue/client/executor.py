"""OncueExecutor: a concurrent.futures.Executor whose calls run on an endpoint.

It follows the standard library's documentation of executors. Where that leaves room:
- A call *runs* once the server has sent it to its endpoint (as ProcessPoolExecutor counts calls in
  its workers' queue). `running()` and `cancel()` request that from the server; a future is never
  RUNNING before.
- `cancel()` of a running call returns False and does not affect it; `future.task.cancel()` ends it
  where it runs.
- `result()` raises what `Task.result()` raises: the function's own exception if its class is to be
  had here (its `__cause__` is the TaskFailed with the remote traceback), else TaskFailed; TaskLost,
  TaskTimedOut ...; CancelledError for a task that was cancelled by somebody else, but TaskCancelled
  if this future was known to run. When the server is away for longer than the client's patience,
  Unreachable: the task goes on, and `future.task.result()` may be called later.
- A function or argument that cannot be packed raises CannotPack at once, from `submit()` or
  `map()`.
- `map(chunksize=...)` has no effect, as in ThreadPoolExecutor: tasks are sent in batches anyway.
- A program does not end before its futures are done, whether `shutdown()` was called or not. To
  avoid that, submit calls with the client instead.

One thread of the executor unpacks values and runs callbacks, so that the outcome thread never does.
It lives while futures are open.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from oncue.client.calls import Call, submit_call, submit_calls
from oncue.client.deadline import FOREVER
from oncue.client.options import Options
from oncue.client.resources import Endpoints, Tasks
from oncue.client.session import Session, open_session
from oncue.client.task import Task
from oncue.errors import OncueError, TaskCancelled
from oncue.protocol.records import OK

R = TypeVar("R")
log = logging.getLogger("oncue.client")
CHECK_S = 1.0  # pause between checks if the server is gone, while futures are open
# An idle thread waits for more calls, so that a loop of single calls does not start one each.
LINGER_S = 0.05
IDS_PER_CANCEL = 10_000  # the server's limit for one request


class TaskFuture(Future[R]):
    """Future of a task; `task` is its handle."""

    def __init__(self, task: Task[R], executor: OncueExecutor) -> None:
        super().__init__()
        self.task = task
        self._executor = executor
        self._begun = False

    def _begin(self) -> bool:
        """Set the future RUNNING, so that an outcome may be set.

        Return False if it was cancelled; its waiters are notified then.
        """
        with self._condition:
            if not self._begun:
                self._begun = True
                return self.set_running_or_notify_cancel()
            return not self.cancelled()

    def result(self, timeout: float | None = None) -> R:
        try:
            return super().result(timeout)
        finally:
            self._mark_reported()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            return super().exception(timeout)
        finally:
            self._mark_reported()

    def _mark_reported(self) -> None:
        """Record that the caller has seen a rejection of the call."""
        if self.done():
            self.task._mark_reported()

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent to its endpoint.

        Waits for the server's answer. Return False if the call runs there (and goes on), has ended,
        or the server is unreachable.
        """
        if not self.done() and not self._begun:
            self._executor._cancel_waiting([self])
        return self.cancelled()

    def running(self) -> bool:
        """True if the call is at its endpoint and has not ended. Sends a request."""
        if not self.done() and not self._begun and self.task._is_at_endpoint():
            self._begin()
        return super().running()


class _Caller(Protocol):
    """A Client or BoundClient."""

    session: Session
    options: Options


class OncueExecutor(Executor):
    """Executor of an endpoint.

    client: whose calls and options it uses; None: a client of its own, made of `server` (the
        arguments of Client: url, token, data ...) and closed by shutdown().
    endpoint: name of the endpoint; None: the client's.
    """

    def __init__(self, client: _Caller | None = None, *, endpoint: str | None = None, **server: Any) -> None:
        if client is not None and server:
            raise TypeError(f"{next(iter(server))} is an argument of a client of its own: give no `client`")
        self._own = client is None
        self._session = open_session(**server) if client is None else client.session
        options = Options() if client is None else client.options
        self._options = options if endpoint is None else options.replace({"endpoint": endpoint})
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: dict[int, TaskFuture[Any]] = {}  # by id(): not done yet for their callers
        self._ended: SimpleQueue[TaskFuture[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._shut = False

    def __repr__(self) -> str:
        return f"<oncue executor of endpoint {self._options.endpoint} at {self._session.http.address()}>"

    @property
    def _max_workers(self) -> int:
        """The endpoint's workers: Dask and joblib read it as an executor's."""
        try:
            return max(1, Endpoints(self._session).get(self._options.endpoint).workers)
        except OncueError:
            return 1

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Submit fn(*args, **kwargs). Raises RuntimeError after shutdown; CannotPack."""
        with self._lock:
            self._check()
            future = TaskFuture(submit_call(self._session, fn, args, kwargs, self._options), self)
            self._add([future])
        return self._listen([future])[0]

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[R]:
        """Submit a call for each tuple of items; yield the results in order.

        The iterables are read at once. Raises TimeoutError if a result is missing `timeout` seconds
        after this call; calls that do not run yet are then cancelled.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if more:
            raise TypeError(f"map() got an unexpected keyword argument {next(iter(more))!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        # Without the lock: an iterable may use this executor.
        calls: list[Call] = [(args, {}) for args in zip(*iterables, strict=False)]
        with self._lock:
            self._check()
            tasks = submit_calls(self._session, fn, calls, self._options)
            futures: list[TaskFuture[R]] = [TaskFuture(task, self) for task in tasks]
            self._add(futures)
        return _in_order(self._listen(futures), deadline, self._cancel_waiting)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. Idempotent.

        `cancel_futures`: cancel calls that do not run yet. `wait`: wait for the others; raises
        RuntimeError in a callback of a future, which would wait for itself.
        """
        with self._lock:
            self._shut = True
            futures = list(self._open.values())
        if cancel_futures:
            self._cancel_waiting(futures)
        thread = self._thread
        if wait and thread is threading.current_thread():
            raise RuntimeError("cannot wait for the executor in a callback of its futures")
        if wait:
            with self._lock:
                self._idle.wait_for(lambda: not self._open)
        self._ended.put(None)
        if wait and thread is not None:
            thread.join()
        if wait and self._own:
            self._session.close(flush=True)

    # ------------------------------------------------------------ the thread

    def _check(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._session.sender.closed:  # as at the end of the program
            raise RuntimeError("cannot schedule new futures after the client was closed")

    def _add(self, futures: Sequence[TaskFuture[Any]]) -> None:
        """Add open futures and start the thread. Call it with the lock held."""
        self._open |= {id(future): future for future in futures}
        if self._thread is None and futures:
            # Not a daemon: the program goes on until its futures are done.
            self._thread = threading.Thread(target=self._run, name="oncue-executor", daemon=False)
            self._thread.start()

    def _listen(self, futures: list[TaskFuture[R]]) -> list[TaskFuture[R]]:
        """Queue each future when its task ends.

        Call it without the lock: a task that is done already calls back at once.
        """
        put = self._ended.put
        for future in futures:
            future.task.add_done_callback(lambda _, f=future: put(f))  # type: ignore[misc]
        return futures

    def _run(self) -> None:
        """Resolve futures until none is open and no new one is added."""
        while True:
            future = None  # a thread that waits must not keep the last value alive
            try:
                future = self._ended.get(timeout=CHECK_S if self._open else LINGER_S)
            except Empty:
                self._fail_if_gone()
            if future is not None:
                try:
                    resolve(future)
                except Exception as e:  # the thread serves all futures
                    log.exception("the outcome of task %s could not be set", future.task.id)
                    _fail(future, e)
                self._remove([future])
            elif self._may_end():
                return

    def _may_end(self) -> bool:
        with self._lock:
            if self._open:
                return False
            self._thread = None
            return True

    def _remove(self, futures: Iterable[TaskFuture[Any]]) -> None:
        with self._lock:
            for future in futures:
                self._open.pop(id(future), None)
            if not self._open:
                self._idle.notify_all()

    def _fail_if_gone(self) -> None:
        """Fail all open futures if the server is gone or the client was closed."""
        gone = self._session.outcomes.gone
        if gone is not None:
            futures = list(self._open.values())
            for future in futures:
                _fail(future, gone)
            self._remove(futures)

    def _cancel_waiting(self, futures: Sequence[TaskFuture[Any]]) -> None:
        """Cancel those that do not run yet, and set the others RUNNING."""
        pending: dict[str, TaskFuture[Any]] = {}
        for future in futures:
            if not future.done() and not future._begun:
                with contextlib.suppress(OncueError):  # it was rejected: its outcome is that error
                    pending[future.task._wait_accepted()] = future
        wanted, cancelled = list(pending), set[str]()
        try:
            for start in range(0, len(wanted), IDS_PER_CANCEL):
                part = wanted[start : start + IDS_PER_CANCEL]
                cancelled.update(Tasks(self._session).cancel(part, waiting=True))
        except OncueError as e:  # it is unknown if they run: they go on
            log.warning("%d calls could not be cancelled: %s", len(pending), e.message)
            return
        for task_id, future in pending.items():
            if task_id in cancelled:
                Future.cancel(future)
            future._begin()
        self._remove([f for f in pending.values() if f.cancelled()])


def resolve(future: TaskFuture[Any]) -> None:
    """Set the task's outcome as the future's result or exception."""
    if future.done():  # cancelled, or failed
        return
    task = future.task
    try:
        ended = task._outcome(FOREVER, reports=False)
        if ended.status != OK:
            _fail(future, task._error(ended))
            return
        value = task._result(FOREVER, reports=False)
    except BaseException as e:  # unpickling may raise anything: it is the caller's
        _fail(future, e)
    else:
        if future._begin():
            future.set_result(value)


def _fail(future: TaskFuture[Any], error: BaseException) -> None:
    if isinstance(error, TaskCancelled) and Future.cancel(future):  # unless it is known to run
        future._begin()
    elif not future.done() and future._begin():
        future.set_exception(error)


def _in_order(
    futures: list[TaskFuture[R]],
    deadline: float | None,
    cancel_waiting: Callable[[Sequence[TaskFuture[Any]]], None],
) -> Iterator[R]:
    """Yield results in order; cancel the rest if closed early or a result is late."""
    futures.reverse()  # popped from the end, so that a result is not kept alive here
    try:
        while futures:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with contextlib.suppress(CancelledError):  # result() raises it
                futures[-1].exception(left)  # stays in the list: cancelled with the rest
            yield futures.pop().result()
    finally:
        cancel_waiting(futures)
