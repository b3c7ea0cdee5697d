"""Thread that writes the view: runs jobs from the event loop, in order."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from oncue.disk.sqlite_errors import is_damage, is_disk_full
from oncue.errors import DiskFull, NotReady
from oncue.view.schema import ViewError, mark_damaged

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class ViewWriter:
    """Runs jobs in one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="oncue-view", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], T]) -> T:
        """Return `job()`; it runs to its end even if the caller is cancelled.

        Raises ViewError if SQLite fails, DiskFull, NotReady after `close`.
        """
        if self._closed:
            raise NotReady("the view is closed", remedy="the server is stopping; try again when it runs")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((job, future, loop))
        return await future

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future, loop = item
            result, error = None, None
            try:
                result = job()
            except sqlite3.Error as e:
                error = self._explain(e)
            except Exception as e:
                error = e
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop is closed
                continue
            del item, job, future, result, error  # free a large result before the next job comes

    def _explain(self, e: sqlite3.Error) -> Exception:
        if is_damage(e):
            mark_damaged(self._path)
            remedy = "restart the server: the view is rebuilt from the log"
        elif is_disk_full(e, self._path.parent):
            return DiskFull(
                f"the disk that holds the view {self._path} is full: {e}",
                remedy="free some space there; the log keeps all records until then",
            )
        else:
            remedy = "check that folder's disk and permissions, and restart the server"
        error = ViewError(f"the view {self._path} cannot be written: {e}", remedy=remedy)
        error.__cause__ = e
        return error

    async def close(self) -> None:
        """Run the queued jobs, then end."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
