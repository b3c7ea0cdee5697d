"""ThreadCalls: functions that other threads ask the watcher's thread to call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadCalls:
    """Queue of calls. `submit` may be called from any thread, `run` in the watcher's."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Return a future of the call's result. It waits while the thread is blocked."""
        future: Future[T] = Future()
        self._calls.append((call, future))
        return future

    def run(self) -> None:
        """Make the calls that were submitted."""
        while self._calls:
            call, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except Exception as e:  # a call never ends the watch
                future.set_exception(e)
