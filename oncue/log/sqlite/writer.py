"""The thread that writes: group commit.

    loop: append() ──queue──► thread: all that is queued = one transaction, one fsync ──one callback──► loop: publish()

Offsets are given here, at the time of writing, so that an append that fails leaves no gap; the queue's order is the
order of the calls. Whoever dies in between: SQLite's log has the whole transaction or nothing of it.
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
from oncue.log.sqlite.database import PAGE_BYTES, WAL_BYTES, explain
from oncue.log.sqlite.state import Part, TopicState

logger = logging.getLogger(__name__)

GROUP_JOBS = 4096  # of one transaction
GROUP_BYTES = 32 * 1024 * 1024
WAL_FRAMES = WAL_BYTES // PAGE_BYTES

INSERT = "INSERT INTO batches VALUES (?,?,?,?,?,?,?,?)"
SET_OFFSET = "INSERT OR REPLACE INTO offsets VALUES (?,?,?,?)"
SET_TOPIC = "INSERT INTO topics VALUES (?,?,?) ON CONFLICT(id) DO UPDATE SET settings = excluded.settings"
SET_PARTITION = "INSERT OR IGNORE INTO partitions VALUES (?,?,0)"


class Chunk:
    """Records for one partition: one row, one Batch."""

    __slots__ = ("first", "nbytes", "part", "records", "size", "time_ms")

    def __init__(self, part: Part, records: Sequence[Record], time_ms: int) -> None:
        self.size = len(records[0].value) * len(records)  # about; nbytes is exact, once it is encoded
        self.part = part
        self.records = records
        self.time_ms = time_ms  # of the newest
        self.first = 0
        self.nbytes = 0


class Write:
    """What becomes durable together: chunks, and what a group has done."""

    __slots__ = ("bury", "chunks", "error", "future", "group", "offsets")

    def __init__(
        self,
        future: asyncio.Future[list[Position]],
        chunks: Sequence[Chunk],
        group: str = "",
        offsets: dict[Partition, tuple[TopicState, int]] | None = None,
        bury: tuple[int, int, int] | None = None,
    ) -> None:
        self.future = future
        self.chunks = chunks
        self.group = group
        self.offsets = offsets
        self.bury = bury  # the row (topic, partition, first) that is damaged and told of now
        self.error: OncueError | None = None


class Call:
    """Other work on the database, in a transaction of its own."""

    __slots__ = ("committed", "error", "frames", "function", "future", "result")

    def __init__(
        self,
        future: asyncio.Future[Any],
        function: Callable[[sqlite3.Connection], Any] | None,
        committed: Callable[[], None] | None,
        frames: int,
    ) -> None:
        self.future = future
        self.function = function  # None: a checkpoint, now
        self.frames = frames  # that it may write, besides two a changed row
        self.committed = committed
        self.result: Any = None
        self.error: OncueError | None = None


class Counters(msgspec.Struct):
    """For metrics; counted since the log was opened."""

    commits: int = 0
    records: int = 0
    bytes: int = 0
    failed: int = 0  # appends
    last_commit_s: float = 0.0
    checkpoints: int = 0


class Writer:
    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        publish: Callable[[list[Write | Call]], None],
    ) -> None:
        self.counters = Counters()
        self._db = db
        self._path = path
        self._loop = loop
        self._publish = publish
        self._queue: queue.SimpleQueue[Write | Call | None] = queue.SimpleQueue()
        self._frames = 0  # roughly, in the write-ahead log since it was last started over
        self._due = WAL_FRAMES  # when to look whether it can be started over
        self._broken: LogError | None = None
        self._going = True
        self._current: list[Write | Call] = []  # what is under way
        self.hold = False  # loop: no checkpoints now but those that are called for
        self.closing = False  # loop: nothing more is handed over
        self._thread = threading.Thread(target=self._run, name="oncue-log-writer", daemon=True)
        # The loop puts jobs by this name: one bound method, no wrapper in the way.
        self.put = self._queue.put
        self._thread.start()

    @property
    def depth(self) -> int:
        return self._queue.qsize()

    def call(
        self,
        function: Callable[[sqlite3.Connection], Any] | None,
        committed: Callable[[], None] | None = None,
        frames: int = 64,
    ) -> asyncio.Future[Any]:
        """Run `function(db)` in the thread, in one transaction, behind all that is queued; `committed()` after it.
        Without a function: a checkpoint."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closing:
            future.set_exception(LogError("the log is closed"))
            return future
        self._queue.put(Call(future, function, committed, frames))
        return future

    def stop(self) -> None:
        """Write what is queued, then end. Blocks."""
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._going:
            try:
                self._work()
            except Exception as e:  # a fault of ours: nobody may wait for ever because of it
                logger.exception("the writer of the log failed")
                self._broken = LogError(
                    f"the writer of the log failed: {e!r}", remedy="restart oncue, and please report this"
                )
                for job in self._current:
                    job.error = self._broken
                self._deliver(self._current)

    def _work(self) -> None:
        get, waiting = self._queue.get, self._queue.qsize
        while self._going:
            job = get()
            group: list[Write] = []
            nbytes = 0
            self._current = [] if job is None else [job]
            while type(job) is Write:
                group.append(job)
                for chunk in job.chunks:
                    nbytes += chunk.size
                if not waiting() or len(group) >= GROUP_JOBS or nbytes >= GROUP_BYTES:
                    break
                job = get()
            self._going = job is not None
            if group:
                self._current = [*group, job] if isinstance(job, Call) else list(group)
                self._commit(group)
                self._deliver(list(group))
            if isinstance(job, Call):
                self._current = [job]
                self._run_call(job)
                self._deliver([job])
            if self._frames >= self._due and not self.hold:
                self._checkpoint()

    def _deliver(self, jobs: list[Write | Call]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._publish, jobs)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            logger.debug("the loop ended before the log was closed")

    def _commit(self, group: list[Write]) -> None:
        started = time.perf_counter()
        error = self._try(group)
        if error is not None:
            self._one_by_one(group, error)
        self.counters.last_commit_s = time.perf_counter() - started

    def _one_by_one(self, group: list[Write], error: OncueError) -> None:
        """A transaction of many failed: find those that fail by themselves, so that none fails because of another."""
        if len(group) == 1:
            group[0].error = error
            self.counters.failed += 1
            return
        no_more_than: float = float("inf")
        for job in group:
            size = sum(chunk.size for chunk in job.chunks)
            if size >= no_more_than:  # where a smaller one found no room, this one finds none
                job.error = error
            else:
                job.error = self._try([job])
                if isinstance(job.error, DiskFull):
                    no_more_than, error = size, job.error
            self.counters.failed += job.error is not None

    def _try(self, group: list[Write]) -> OncueError | None:
        """One transaction. What went wrong, or None: then all of it is durable."""
        if self._broken is not None:
            return self._broken
        before: dict[Part, int] = {}
        new: list[TopicState] = []
        db = self._db
        try:
            found, nbytes = self._rows(group, before, new)
            if len(found) == 1 and not new and group[0].offsets is None and group[0].bury is None:
                db.execute(INSERT, found[0])  # is its own transaction
            else:
                db.execute("BEGIN IMMEDIATE")
                for topic in new:
                    store_topic(db, topic)
                if found:
                    db.executemany(INSERT, found)
                for job in group:
                    self._marks(job)
                db.execute("COMMIT")
        except Exception as e:
            for part, place in before.items():
                part.next = place
            return self._failed(e)
        for topic in new:
            topic.stored = True
        for job in group:
            for chunk in job.chunks:
                chunk.part.grown_bytes += chunk.nbytes
        self._count(found, before, nbytes)
        return None

    def _rows(
        self, group: list[Write], before: dict[Part, int], new: list[TopicState]
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Give offsets, and make the rows. `before` gets what has to be put back if they do not become durable."""
        found: list[tuple[Any, ...]] = []
        total = 0
        for job in group:
            for chunk in job.chunks:
                part, records = chunk.part, chunk.records
                topic, count = part.topic, len(records)
                if not topic.stored and topic not in new:
                    new.append(topic)
                if part not in before:
                    before[part] = part.next
                chunk.first = part.next
                part.next += count
                blob = rows.encode(records)
                chunk.nbytes = len(blob)
                total += chunk.nbytes
                found.append(
                    (topic.id, part.number, chunk.first, count, chunk.time_ms, rows.checksum(blob), None, blob)
                )
            if job.offsets is not None:
                new.extend(t for t, _ in job.offsets.values() if not t.stored and t not in new)
        return found, total

    def _marks(self, job: Write) -> None:
        if job.offsets:
            self._db.executemany(
                SET_OFFSET, [(job.group, topic.id, n, place) for (_, n), (topic, place) in job.offsets.items()]
            )
        if job.bury is not None:
            self._db.execute(
                f"UPDATE batches SET crc = {rows.BURIED} WHERE topic = ? AND partition = ? AND first = ?", job.bury
            )

    def _count(self, found: list[tuple[Any, ...]], parts: dict[Part, int], nbytes: int) -> None:
        counters = self.counters
        counters.commits += 1
        counters.bytes += nbytes
        for part, place in parts.items():
            counters.records += part.next - place
        for row in found:
            self._frames += len(row[7]) // PAGE_BYTES + 2

    def _run_call(self, job: Call) -> None:
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
        error = explain(e, self._path)
        if getattr(e, "sqlite_errorname", "") == "SQLITE_IOERR_FSYNC" and not isinstance(error, DiskFull):
            # After a failed fsync the kernel may call pages clean that never reached the disk: trying again would
            # report as durable what is not (https://lwn.net/Articles/752063/).
            self._broken = LogError(
                f"fsync of the log {self._path} failed, so nothing more is accepted: {e}",
                remedy="check the disk, then restart oncue",
            )
            return self._broken
        return error

    def _checkpoint(self) -> None:
        """Move what was written into the database file, so that the write-ahead log starts over. While someone reads
        an old state it cannot; then it is tried again soon, and waited for when the log is four times its size."""
        try:
            mode = "RESTART" if self._frames >= 4 * WAL_FRAMES else "PASSIVE"
            busy, frames, done = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as e:
            logger.warning("checkpoint: %s", explain(e, self._path).message)
            self._due = self._frames + WAL_FRAMES // 4
            return
        self.counters.checkpoints += 1
        if done >= frames and not busy:
            self._frames, self._due = 0, WAL_FRAMES  # the next commit starts the log over, unless someone reads it
            if mode == "PASSIVE" and frames >= 4 * WAL_FRAMES:
                self._frames = frames
        else:
            self._frames, self._due = frames, frames + WAL_FRAMES // 4


def store_topic(db: sqlite3.Connection, topic: TopicState, settings: Topic | None = None) -> None:
    """With new settings, or its own."""
    chosen = settings or topic.settings
    db.execute(SET_TOPIC, (topic.id, topic.name, msgspec.msgpack.encode(chosen)))
    db.executemany(SET_PARTITION, [(topic.id, number) for number in range(chosen.partitions)])
