"""Reading rows back from the disk, off the loop: short reads in their own connections, so that they neither wait for
the writer nor keep its write-ahead log from starting over."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from oncue.errors import LogError, Undecodable
from oncue.log.base import RecordBatch
from oncue.log.sqlite import rows
from oncue.log.sqlite.database import explain, open_reader
from oncue.protocol.records import EVENT_BYTES

T = TypeVar("T")

FETCH_BYTES = 4 * 1024 * 1024  # of one read: bounds its time and memory; one row always comes
FETCH_ROWS = 1024
THREADS = 2

# From the row that holds the offset, which may begin before it.
SELECT = """
SELECT first, count, crc, offsets, blob FROM batches
 WHERE topic = ?1 AND partition = ?2 AND first < ?4 AND first >= coalesce(
   (SELECT first FROM batches WHERE topic = ?1 AND partition = ?2 AND first <= ?3 ORDER BY first DESC LIMIT 1), ?3)
 ORDER BY first"""


class Want(msgspec.Struct, frozen=True):
    """Offsets at ... end - 1 of one partition; topic is its number in the database, name what users call it."""

    topic: int
    name: str
    partition: int
    at: int
    end: int


class Damaged(msgspec.Struct, frozen=True):
    """A row that is no batch any more."""

    want: Want
    first: int
    reason: str
    record: bytes


class Fetched(msgspec.Struct, frozen=True):
    """`batches` with their size as stored, and how far they reach: `end` when there is no more before it."""

    batches: list[tuple[RecordBatch, int]]
    reached: int
    damaged: list[Damaged]


class Store:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(THREADS, "oncue-log-reader")

    def run(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], *values: Any) -> asyncio.Future[T]:
        """In a thread that may read. Raises LogError when the log is closed."""
        if self._closed:
            raise LogError("the log is closed")
        return loop.run_in_executor(self._threads, function, *values)

    def close(self) -> None:
        """Blocks until the reads under way are done."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        for db in self._open:
            db.close()
        self._open.clear()

    def fetch(self, wants: Sequence[Want]) -> list[Fetched]:
        """As much of each as fits, in turn. For `run`. Raises LogError."""
        try:
            db = self._connection()
            budget = FETCH_BYTES
            found: list[Fetched] = []
            for want in wants:
                got, used = _fetch(db, want, budget) if budget > 0 else (Fetched([], want.at, []), 0)
                found.append(got)
                budget -= used
            return found
        except sqlite3.Error as e:
            raise explain(e, self._path) from e

    def rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        """A small query. For `run`. Raises LogError."""
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise explain(e, self._path) from e

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise LogError("the log is closed")
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_reader(self._path)
            self._open.append(db)
        return db


def _fetch(db: sqlite3.Connection, want: Want, budget: int) -> tuple[Fetched, int]:
    batches: list[tuple[RecordBatch, int]] = []
    damaged: list[Damaged] = []
    used, reached, taken = 0, want.at, 0
    cursor = db.execute(SELECT, (want.topic, want.partition, want.at, want.end))
    try:
        for first, count, crc, offsets, blob in cursor:
            if taken >= FETCH_ROWS or (taken and used + len(blob) > budget):
                return Fetched(batches, reached, damaged), used
            taken += 1
            used += len(blob) + 64
            if crc == rows.BURIED:
                reached = max(reached, first + count)
                continue
            try:
                places, records = rows.decode(first, count, crc, offsets, blob)
            except Undecodable as e:
                damaged.append(Damaged(want, first, e.message, blob[:EVENT_BYTES]))
                reached = max(reached, first + count)
                continue
            if places[-1] >= want.at:
                batches.append((rows.tail(RecordBatch(want.name, want.partition, places, records), want.at), len(blob)))
                reached = places[-1] + 1
    finally:
        cursor.close()  # ends the read: a statement left open would hold the write-ahead log
    return Fetched(batches, want.end, damaged), used
