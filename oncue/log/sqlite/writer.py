"""The writer thread of the embedded log: group commit.

    loop: append() ──queue──► thread: all queued jobs in one transaction, one fsync
    loop: publish() ◄──callback──┘

The thread assigns offsets when it writes, so that a failed append leaves no gap; jobs are written
in the order of the calls. After a crash, SQLite has all of a transaction or none of it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from oncue.errors import DiskFull, LogError, OncueError
from oncue.log.base import Partition, Position, Record, Topic
from oncue.log.sqlite import rows
from oncue.log.sqlite.database import PAGE_BYTES, WAL_BYTES, explain, explain_damage
from oncue.log.sqlite.state import PartitionState, TopicState

logger = logging.getLogger(__name__)

GROUP_JOBS = 4096  # per transaction
GROUP_BYTES = 32 * 1024 * 1024
WAL_FRAMES = WAL_BYTES // PAGE_BYTES

INSERT = "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?)"
SET_OFFSET = "INSERT OR REPLACE INTO offsets VALUES (?,?,?,?,?)"
SET_TOPIC = """INSERT INTO topics VALUES (?,?,?,?)
 ON CONFLICT(id) DO UPDATE SET settings = excluded.settings, crc = excluded.crc"""
SET_PARTITION = "INSERT OR IGNORE INTO partitions(topic, partition, next) VALUES (?,?,0)"
SET_BOUNDS = "UPDATE partitions SET next = ?, begin = ?, crc = ? WHERE topic = ? AND partition = ?"
# The row is damaged, or missing.
SET_DAMAGED = f"""INSERT INTO batches VALUES (?,?,?,?,0,{rows.DEAD_LETTERED},NULL,x'')
 ON CONFLICT DO UPDATE SET crc = {rows.DEAD_LETTERED}"""


class RowWrite:
    """Records of one append to one partition: one row, read back as one batch."""

    __slots__ = ("first", "nbytes", "part", "records", "size", "time_ms")

    def __init__(self, part: PartitionState, records: Sequence[Record], time_ms: int) -> None:
        self.size = len(records[0].value) * len(records)  # estimate; nbytes is exact, once encoded
        self.part = part
        self.records = records
        self.time_ms = time_ms  # of the newest record
        self.first = 0
        self.nbytes = 0


class WriteJob:
    """Rows and group offsets that become durable together."""

    __slots__ = ("damaged", "error", "future", "group", "offsets", "rows")

    def __init__(
        self,
        future: asyncio.Future[list[Position]],
        rows: Sequence[RowWrite],
        group: str = "",
        offsets: dict[Partition, tuple[TopicState, int]] | None = None,
        damaged: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.future = future
        self.rows = rows
        self.group = group
        self.offsets = offsets
        self.damaged = damaged  # row (topic, partition, first, count) whose dead letter this is
        self.error: OncueError | None = None


class CallJob:
    """Other work on the database, in its own transaction."""

    __slots__ = ("committed", "error", "frames", "function", "future", "result")

    def __init__(
        self,
        future: asyncio.Future[Any],
        function: Callable[[sqlite3.Connection], Any] | None,
        committed: Callable[[], None] | None,
        frames: int,
    ) -> None:
        self.future = future
        self.function = function  # None: checkpoint
        self.frames = frames  # estimate of WAL frames written, besides two per changed row
        self.committed = committed
        self.result: Any = None
        self.error: OncueError | None = None


class SqliteCounters(msgspec.Struct):
    """Counters for metrics, since the log was opened."""

    commits: int = 0
    records: int = 0
    bytes: int = 0
    failed: int = 0  # appends
    last_commit_s: float = 0.0
    checkpoints: int = 0


class WriterThread:
    """Runs jobs; `publish(jobs)` is called on the loop after each transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        publish: Callable[[list[WriteJob | CallJob]], None],
    ) -> None:
        self.counters = SqliteCounters()
        self._db = db
        self._path = path
        self._loop = loop
        self._publish = publish
        self._queue: queue.SimpleQueue[WriteJob | CallJob | None] = queue.SimpleQueue()
        self._frames = 0  # estimate, in the write-ahead log since its last restart
        self._due = WAL_FRAMES  # frames at which the next checkpoint is tried
        self._broken: LogError | None = None
        self.trouble = ""  # why the last transaction failed
        self._running = True
        self._current: list[WriteJob | CallJob] = []  # jobs in progress
        self.hold = False  # loop: suspend automatic checkpoints
        self.closing = False  # loop: reject new jobs
        self._thread = threading.Thread(target=self._run, name="oncue-log-writer", daemon=True)
        self.enqueue = self._queue.put  # a bound method, not a wrapper: called for each append
        self._thread.start()

    @property
    def depth(self) -> int:
        """Number of queued jobs."""
        return self._queue.qsize()

    def call(
        self,
        function: Callable[[sqlite3.Connection], Any] | None,
        committed: Callable[[], None] | None = None,
        frames: int = 64,
    ) -> asyncio.Future[Any]:
        """Enqueue `function(db)`, to run in one transaction; then call `committed()`.

        Both run in the writer thread. Without a function it makes a checkpoint.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closing:
            future.set_exception(LogError("the log is closed"))
            return future
        self._queue.put(CallJob(future, function, committed, frames))
        return future

    def stop(self) -> None:
        """Write all queued jobs, then end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._running:
            try:
                self._work()
            except Exception as e:  # a bug: callers must not wait for ever because of it
                logger.exception("the writer of the log failed")
                self._broken = LogError(
                    f"the writer of the log failed: {e!r}", remedy="restart oncue, and please report this"
                )
                for job in self._current:
                    job.error = self._broken
                self._deliver(self._current)

    def _work(self) -> None:
        get, waiting = self._queue.get, self._queue.qsize
        while self._running:
            job = get()
            group: list[WriteJob] = []
            nbytes = 0
            self._current = [] if job is None else [job]
            while type(job) is WriteJob:
                group.append(job)
                for row in job.rows:
                    nbytes += row.size
                if not waiting() or len(group) >= GROUP_JOBS or nbytes >= GROUP_BYTES:
                    break
                job = get()
            self._running = job is not None
            if group:
                self._current = [*group, job] if isinstance(job, CallJob) else list(group)
                self._commit(group)
                self._deliver(list(group))
            if isinstance(job, CallJob):
                self._current = [job]
                self._run_call(job)
                self._deliver([job])
            if self._frames >= self._due and not self.hold:
                self._checkpoint()

    def _deliver(self, jobs: list[WriteJob | CallJob]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._publish, jobs)
        except RuntimeError:  # the loop is closed
            logger.debug("the loop ended before the log was closed")

    def _commit(self, group: list[WriteJob]) -> None:
        started = time.perf_counter()
        error = self._try_commit(group)
        if error is not None:
            self._commit_singly(group, error)
        self.counters.last_commit_s = time.perf_counter() - started

    def _commit_singly(self, group: list[WriteJob], error: OncueError) -> None:
        """Commit each job of a failed transaction by itself: only the culprits fail."""
        if len(group) == 1:
            group[0].error = error
            self.counters.failed += 1
            return
        too_large: float = float("inf")
        for job in group:
            size = sum(row.size for row in job.rows)
            if size >= too_large:  # a smaller one did not fit on the disk
                job.error = error
            else:
                job.error = self._try_commit([job])
                if isinstance(job.error, DiskFull):
                    too_large, error = size, job.error
            self.counters.failed += job.error is not None

    def _try_commit(self, group: list[WriteJob]) -> OncueError | None:
        """Commit one transaction; return the error, or None if it is durable."""
        if self._broken is not None:
            return self._broken
        before: dict[PartitionState, int] = {}
        new: list[TopicState] = []
        db = self._db
        try:
            found, nbytes = self._encode(group, before, new)
            if len(found) == 1 and not new and group[0].offsets is None and group[0].damaged is None:
                db.execute(INSERT, found[0])  # autocommit
            else:
                db.execute("BEGIN IMMEDIATE")
                for topic in new:
                    store_topic(db, topic)
                if found:
                    db.executemany(INSERT, found)
                for job in group:
                    self._update(job)
                db.execute("COMMIT")
        except Exception as e:
            for part, offset in before.items():
                part.next = offset
            return self._failed(e)
        self.trouble = ""
        for topic in new:
            topic.stored = True
        for job in group:
            for row in job.rows:
                row.part.grown_bytes += row.nbytes
        self._count(found, before, nbytes)
        return None

    def _encode(
        self, group: list[WriteJob], before: dict[PartitionState, int], new: list[TopicState]
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Assign offsets and return database rows and their size in bytes.

        Adds to `before` the offsets to restore if the commit fails, and to `new` topics to store.
        """
        found: list[tuple[Any, ...]] = []
        total = 0
        for job in group:
            for row in job.rows:
                part, records = row.part, row.records
                topic, count = part.topic, len(records)
                if not topic.stored and topic not in new:
                    new.append(topic)
                if part not in before:
                    before[part] = part.next
                row.first = part.next
                part.next += count
                blob = rows.encode(records)
                row.nbytes = len(blob)
                total += row.nbytes
                crc = rows.checksum(topic.id, part.number, row.first, count, row.time_ms, None, blob)
                found.append((topic.id, part.number, row.first, count, row.time_ms, crc, None, blob))
            if job.offsets is not None:
                new.extend(t for t, _ in job.offsets.values() if not t.stored and t not in new)
        return found, total

    def _update(self, job: WriteJob) -> None:
        """Store the group's offsets, and mark the damaged row."""
        if job.offsets:
            found = [(job.group, topic.id, n, offset) for (_, n), (topic, offset) in job.offsets.items()]
            self._db.executemany(SET_OFFSET, [(*row, rows.checksum_of(*row)) for row in found])
        if job.damaged is not None:
            self._db.execute(SET_DAMAGED, job.damaged)

    def _count(self, found: list[tuple[Any, ...]], parts: dict[PartitionState, int], nbytes: int) -> None:
        counters = self.counters
        counters.commits += 1
        counters.bytes += nbytes
        for part, before in parts.items():
            counters.records += part.next - before
        for row in found:
            self._frames += len(row[7]) // PAGE_BYTES + 2

    def _run_call(self, job: CallJob) -> None:
        if self._broken is not None:
            job.error = self._broken
            return
        if job.function is None:
            self._checkpoint()
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            changes = self._db.total_changes
            job.result = job.function(self._db)
            self._db.execute("COMMIT")
            self.trouble = ""
            self._frames += job.frames + 2 * (self._db.total_changes - changes)
            if job.committed is not None:
                job.committed()
        except Exception as e:
            job.error = self._failed(e)

    def _failed(self, e: Exception) -> OncueError:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as second:
            logger.warning("could not roll back: %s", second)
        error = explain_damage(e, self._path)
        if isinstance(e, sqlite3.Error):  # not the records' fault
            self.trouble = error.message
        if getattr(e, "sqlite_errorname", "") == "SQLITE_IOERR_FSYNC" and not isinstance(error, DiskFull):
            # After a failed fsync the kernel may mark pages clean that never reached the disk.
            # A retry would report lost data as durable (https://lwn.net/Articles/752063/).
            self._broken = LogError(
                f"fsync of the log {self._path} failed, so nothing more is accepted: {e}",
                remedy="check the disk, then restart oncue",
            )
            return self._broken
        return error

    def _checkpoint(self) -> None:
        """Copy the write-ahead log into the database file, so that it can start over.

        Not possible while a reader uses an old state: then it is tried again soon. Once the log has
        four times its size, the checkpoint waits for readers.
        """
        try:
            mode = "RESTART" if self._frames >= 4 * WAL_FRAMES else "PASSIVE"
            busy, frames, done = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as e:
            logger.warning("checkpoint: %s", explain(e, self._path).message)
            self._due = self._frames + WAL_FRAMES // 4
            return
        self.counters.checkpoints += 1
        if done >= frames and not busy:
            self._frames, self._due = 0, WAL_FRAMES  # next commit starts over
            if mode == "PASSIVE" and frames >= 4 * WAL_FRAMES:
                self._frames = frames
        else:
            self._frames, self._due = frames, frames + WAL_FRAMES // 4


def store_topic(db: sqlite3.Connection, topic: TopicState, settings: Topic | None = None) -> None:
    """Store a topic and its partitions; settings default to its own."""
    chosen = settings or topic.settings
    row = (topic.id, topic.name, msgspec.msgpack.encode(chosen))
    db.execute(SET_TOPIC, (*row, rows.checksum_of(*row)))
    db.executemany(SET_PARTITION, [(topic.id, number) for number in range(chosen.partitions)])


def store_ends(db: sqlite3.Connection, parts: Sequence[PartitionState]) -> None:
    """Store the next offsets, so that missing last rows are noticed at the next start."""
    for part in parts:
        store_bounds(db, part, part.begin)


def store_bounds(db: sqlite3.Connection, part: PartitionState, begin: int) -> None:
    """Store a partition's next offset and its first kept offset."""
    row = (part.topic.id, part.number, part.next, begin)
    db.execute(SET_BOUNDS, (part.next, begin, rows.checksum_of(*row), part.topic.id, part.number))
