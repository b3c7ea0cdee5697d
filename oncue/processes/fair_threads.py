"""FairThreads: a few threads for the work of many, who take turns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from oncue.processes.round_robin import RoundRobin

T = TypeVar("T")
#: For whom the request at hand works: a caller's subject, or an address.
on_behalf_of: ContextVar[str] = ContextVar("on_behalf_of", default="")


class FairThreads:
    """Runs work in threads, of each owner one piece in turn."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: RoundRobin[tuple[Future[Any], Callable[[], Any]]] = RoundRobin()

    async def run(self, work: Callable[[], T]) -> T:
        """Return `work()`, computed in a thread for `on_behalf_of`."""
        done: Future[T] = Future()
        with self._lock:
            self._waiting.add(on_behalf_of.get(), (done, work))
        self._pool.submit(self._run_next)
        return await asyncio.wrap_future(done)

    def _run_next(self) -> None:
        """Do one piece of work of the owner whose turn it is."""
        with self._lock:
            if not self._waiting:
                return
            done, work = self._waiting.pop()
        if not done.set_running_or_notify_cancel():  # its caller has gone
            return
        try:
            done.set_result(work())
        except BaseException as e:
            done.set_exception(e)

    def close(self) -> None:
        """Cancel what waits, and wait for what runs."""
        with self._lock:
            waiting = self._waiting.clear()
        for done, _ in waiting:
            done.cancel()
        self._pool.shutdown(cancel_futures=True)
