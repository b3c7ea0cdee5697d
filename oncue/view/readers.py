"""Pool of reader threads, each with its own read-only connection.

A slow query delays neither the writer nor the event loop, and owners take turns.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from oncue.disk.sqlite_errors import is_damage
from oncue.errors import NotReady
from oncue.processes.fair_threads import FairThreads
from oncue.view.schema import ViewError, mark_damaged, open_reader

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 3


class ReaderPool:
    """Runs queries in threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._threads = FairThreads(THREADS, "oncue-view-read")
        self._closed = False

    async def run(self, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `query(db, ...)`, run in a thread as one transaction.

        Raises ViewError if SQLite fails, NotReady after `close`.
        """
        if self._closed:
            raise NotReady("the view is closed", remedy="the server is stopping; try again when it runs")

        def work() -> T:
            try:
                db = self._connection()
                db.execute("BEGIN")  # one snapshot for all statements of the query
                try:
                    return query(db, *args, **kwargs)
                finally:
                    db.execute("COMMIT")
            except sqlite3.Error as e:
                if is_damage(e):
                    mark_damaged(self._path)
                raise ViewError(
                    f"the view {self._path} cannot be read: {e}",
                    remedy="restart the server: the view can be rebuilt from the log",
                ) from e

        return await self._threads.run(work)

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "db", None)
        if found is None:
            found = self._local.db = open_reader(self._path)
            with self._lock:
                self._open.append(found)
        return found

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._threads.close)
        for db in self._open:
            db.close()
        self._open.clear()
