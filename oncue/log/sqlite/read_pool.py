"""Threads that read rows from the disk, each with its own connection.

Reads are short: they do not wait for the writer, and do not keep its write-ahead log from
starting over.
"""

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
from oncue.log.sqlite.database import explain_damage, open_reader
from oncue.protocol.records import STORED_EVENT_BYTES

T = TypeVar("T")

FETCH_BYTES = 4 * 1024 * 1024  # limit of one read, in time and memory; at least one row is read
FETCH_ROWS = 1024
THREADS = 2

# Starts with the row that contains the offset, which may begin before it.
SELECT = """
SELECT * FROM batches
 WHERE topic = ?1 AND partition = ?2 AND first < ?4 AND first >= coalesce(
   (SELECT first FROM batches
     WHERE topic = ?1 AND partition = ?2 AND first <= ?3 ORDER BY first DESC LIMIT 1), ?3)
 ORDER BY first"""
BEGIN = "SELECT begin FROM partitions WHERE topic = ? AND partition = ?"


class ReadRequest(msgspec.Struct, frozen=True):
    """Request for the offsets at ... end - 1 of one partition."""

    topic: int  # id in the database
    name: str  # of the topic
    partition: int
    at: int
    end: int
    compact: bool = False  # compaction may have left gaps


class DamagedRow(msgspec.Struct, frozen=True):
    """A row that cannot be decoded, or that is missing."""

    request: ReadRequest
    first: int
    count: int
    reason: str
    record: bytes  # the first bytes of its blob


class ReadResult(msgspec.Struct, frozen=True):
    """Batches read for one request."""

    batches: list[tuple[RecordBatch, int]]  # each with its stored size in bytes
    reached: int  # offset up to which everything was read; the request's `end` if it is complete
    damaged: list[DamagedRow]


class ReadPool:
    """Runs reads in threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(THREADS, "oncue-log-reader")

    def run(self, loop: asyncio.AbstractEventLoop, function: Callable[..., T], *values: Any) -> asyncio.Future[T]:
        """Run `function(*values)` in a thread. Raises LogError if the log is closed."""
        if self._closed:
            raise LogError("the log is closed")
        return loop.run_in_executor(self._threads, function, *values)

    def close(self) -> None:
        """Wait for running reads, then close the connections. Blocks."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        for db in self._open:
            db.close()
        self._open.clear()

    def fetch(self, requests: Sequence[ReadRequest]) -> list[ReadResult]:
        """Read the requests in order, up to FETCH_BYTES. For `run`. Raises LogError."""
        try:
            db = self._connection()
            budget = FETCH_BYTES
            found: list[ReadResult] = []
            for request in requests:
                result, used = _fetch(db, request, budget) if budget > 0 else (ReadResult([], request.at, []), 0)
                found.append(result)
                budget -= used
            return found
        except sqlite3.Error as e:
            raise explain_damage(e, self._path) from e

    def rows(self, sql: str, values: Sequence[object]) -> list[Any]:
        """Run a small query. For `run`. Raises LogError."""
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise explain_damage(e, self._path) from e

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise LogError("the log is closed")
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_reader(self._path)
            self._open.append(db)
        return db


def _fetch(db: sqlite3.Connection, request: ReadRequest, budget: int) -> tuple[ReadResult, int]:
    batches: list[tuple[RecordBatch, int]] = []
    damaged: list[DamagedRow] = []
    used, reached, row_count = 0, request.at, 0
    cursor = db.execute(SELECT, (request.topic, request.partition, request.at, request.end))
    try:
        for row in cursor:
            _, _, first, count, _, crc, _, blob = row
            if type(count) is not int or type(blob) is not bytes:  # its columns are damaged, too
                count, blob = 1, b""
            if row_count >= FETCH_ROWS or (row_count and used + len(blob) > budget):
                return ReadResult(batches, reached, damaged), used
            row_count += 1
            used += len(blob) + 64
            if first > reached and not request.compact:
                damaged += _missing(db, request, reached, first)
            if crc == rows.DEAD_LETTERED:
                reached = max(reached, first + count)
                continue
            try:
                numbers, records = rows.decode(row)
            except Undecodable as e:
                damaged.append(DamagedRow(request, first, max(count, 1), e.message, blob[:STORED_EVENT_BYTES]))
                reached = max(reached, first + max(count, 1))
                continue
            if not numbers:
                continue
            if numbers[-1] >= request.at:
                batches.append(
                    (rows.tail(RecordBatch(request.name, request.partition, numbers, records), request.at), len(blob))
                )
                reached = numbers[-1] + 1
    finally:
        cursor.close()  # an open statement would keep the write-ahead log from starting over
    if reached < request.end and not request.compact:
        damaged += _missing(db, request, reached, request.end)
    return ReadResult(batches, request.end, damaged), used


def _missing(db: sqlite3.Connection, request: ReadRequest, first: int, after: int) -> list[DamagedRow]:
    """Return the gap as damage, unless truncation made it meanwhile."""
    row = db.execute(BEGIN, (request.topic, request.partition)).fetchone()
    first = max(first, row[0] if row else 0)
    if first >= after:
        return []
    return [DamagedRow(request, first, after - first, f"the records at {first} to {after - 1} are missing", b"")]
