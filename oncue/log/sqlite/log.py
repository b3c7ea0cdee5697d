"""The embedded log: SQLite in one folder, for one server.

    append ──► WriterThread (group commit, fsync) ──► publish ──► futures, readers, watchers
    readers that are behind ──► ReadPool (threads with own connections) ──► the readers' queues

Files: `log.db` with `-wal` and `-shm`, `lock` and `ballast`. Backup: `VACUUM INTO`, or a copy while
no server runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from oncue.clocks.process import now_ms, now_us, process_clock
from oncue.errors import LogError, OncueError
from oncue.log.base import Append, Assignment, Log, Partition, Position, Reader, Record, RecordBatch, Start, Topic
from oncue.log.sqlite.ballast import Ballast
from oncue.log.sqlite.database import explain
from oncue.log.sqlite.housekeeping import Housekeeping
from oncue.log.sqlite.opening import open_files
from oncue.log.sqlite.read_pool import DamagedRow, ReadPool
from oncue.log.sqlite.reader import SqliteReader
from oncue.log.sqlite.single_owner import SingleOwner
from oncue.log.sqlite.state import Callback, PartitionState, StoredState, TopicState
from oncue.log.sqlite.writer import CallJob, RowWrite, SqliteCounters, WriteJob, WriterThread, store_ends, store_topic
from oncue.processes.file_lock import FileLock
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter
from oncue.protocol.topics import DEAD

logger = logging.getLogger(__name__)


class SqliteLog(Log):
    """Log in one folder, for one process."""

    fifo = True

    def __init__(self, path: Path, lock: FileLock, db: sqlite3.Connection, stored: StoredState) -> None:
        """Use `open`."""
        self._path = path
        self._lock = lock
        self._db = db
        self.identity = f"sqlite {stored.identity}"  # a copy of the folder is the same log
        self._topics = stored.topics
        self._groups = stored.groups
        self._last_id = max((t.id for t in stored.topics.values()), default=0)
        self._watches: list[tuple[str, Callback, bool]] = []
        self._readers: dict[SqliteReader, frozenset[str]] = {}
        self._dead_lettered: set[tuple[Partition, int]] = set()
        self._assignments: set[SingleOwner] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._pool = ReadPool(path)
        self._writer = WriterThread(db, path, self._loop, self._publish)
        self._housekeeping = Housekeeping(self._writer, self._pool, Ballast(path.parent), self._loop)

    @classmethod
    async def open(cls, folder: str | Path) -> SqliteLog:
        """Open the log in this folder, created if missing.

        Raises LogLocked, NetworkMount, DiskFull, LogError.
        """
        path = Path(folder).expanduser().absolute() / "log.db"
        return cls(path, *await asyncio.to_thread(open_files, path))

    # ------------------------------------------------------------ metrics

    @property
    def counters(self) -> SqliteCounters:
        """Counters of commits, records, bytes ... since the log was opened."""
        return self._writer.counters

    @property
    def queue_depth(self) -> int:
        """Number of jobs that wait for the writer."""
        return self._writer.depth

    # ------------------------------------------------------------ topics

    async def ensure(self, topics: Mapping[str, Topic]) -> None:
        self._check()
        changed: list[tuple[TopicState, Topic]] = []
        for name, settings in topics.items():
            topic = self._topics.get(name) or self._topic(name, settings)
            if settings.partitions < len(topic.parts):
                raise LogError(
                    f"the topic {name!r} has {len(topic.parts)} partitions and cannot have {settings.partitions}",
                    remedy="partitions can only be added; records would lose their place",
                )
            if topic.settings != settings or not topic.stored:
                changed.append((topic, settings))
        if not changed:
            return

        def store(db: sqlite3.Connection) -> None:
            for topic, settings in changed:
                store_topic(db, topic, settings)

        def stored() -> None:
            for topic, _ in changed:
                topic.stored = True

        await self._writer.call(store, stored)
        # Settings take effect once durable: a partition without its row is lost at the next start.
        for topic, settings in changed:
            topic.settings = settings
            self._grow(topic, settings.partitions)

    def _topic(self, name: str, settings: Topic | None = None) -> TopicState:
        topic = self._topics.get(name)
        if topic is None:
            # Its row is stored with its first record, in the same transaction.
            self._last_id += 1
            topic = self._topics[name] = TopicState(self._last_id, name, settings or Topic(), stored=False)
            self._apply_watches(topic)
        return topic

    def _grow(self, topic: TopicState, partitions: int) -> None:
        for number in range(len(topic.parts), partitions):
            part = PartitionState(topic, number)
            topic.parts.append(part)
            for reader, names in self._readers.items():
                if topic.name in names:
                    reader.add_partition(part, 0)

    async def topics(self) -> dict[str, Topic]:
        return {name: topic.settings for name, topic in self._topics.items()}

    # ------------------------------------------------------------ writing

    def append(
        self, topic: str, records: Sequence[Record], partition: int | None = None
    ) -> asyncio.Future[list[Position]]:
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        if self._closed:
            future.set_exception(LogError("the log is closed"))
            return future
        if not records:
            future.set_result([])
            return future
        state = self._topics.get(topic) or self._topic(topic)
        try:
            rows, stamped = self._rows(state, records, partition)
        except LogError as e:
            future.set_exception(e)
            return future
        self._writer.enqueue(WriteJob(future, rows))
        # After enqueueing: appends made by a watcher come after the records it is called with.
        if state.early:
            _notify(state.early, topic, stamped)
        return future

    def _rows(
        self, topic: TopicState, records: Sequence[Record], partition: int | None
    ) -> tuple[list[RowWrite], Sequence[Record]]:
        """Return one row per partition, and all records with their timestamps."""
        now = now_ms()
        # A copy: the caller may change its list before the writer thread reads it.
        stamped = tuple([r if r.time_ms else Record(r.value, r.key, r.headers, now) for r in records])
        parts: list[tuple[PartitionState, Sequence[Record]]]
        if partition is None:
            parts = list(topic.spread(stamped)) if len(topic.parts) > 1 else [(topic.parts[0], stamped)]
        elif 0 <= partition < len(topic.parts):
            parts = [(topic.parts[partition], stamped)]
        else:
            raise LogError(
                f"the topic {topic.name!r} has no partition {partition}: it has {len(topic.parts)}",
                remedy="ensure() the topic with more partitions first",
            )
        try:
            return [RowWrite(part, found, _newest(found)) for part, found in parts], stamped
        except TypeError as e:
            raise explain(e, self._path) from e

    async def commit(
        self, group: str, batches: Sequence[RecordBatch], appends: Sequence[Append] = (), *, repeatable: bool = False
    ) -> list[Position]:
        self._check()
        offsets: dict[Partition, tuple[TopicState, int]] = {}
        for batch in batches:
            offsets[(batch.topic, batch.partition)] = (self._topic(batch.topic), batch.next_offset)
        rows: list[RowWrite] = []
        appended: list[tuple[TopicState, Sequence[Record]]] = []
        for append in appends:
            if append.records:
                topic = self._topic(append.topic)
                found, stamped = self._rows(topic, append.records, append.partition)
                rows += found
                appended.append((topic, stamped))
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        self._writer.enqueue(WriteJob(future, rows, group, offsets))
        for topic, stamped in appended:
            if topic.early:
                _notify(topic.early, topic.name, stamped)
        return await future

    def _publish(self, jobs: list[WriteJob | CallJob]) -> None:
        """Publish durable jobs to readers, watchers and futures.

        Runs on the loop, once per transaction.
        """
        for job in jobs:
            future = job.future
            if job.error is not None:
                if not future.done():
                    future.set_exception(job.error)
            elif isinstance(job, WriteJob):
                positions = [self._publish_row(row) for row in job.rows]
                if job.offsets is not None:
                    committed = self._groups.setdefault(job.group, {})
                    committed.update((key, offset) for key, (_, offset) in job.offsets.items())
                if not future.done():
                    future.set_result(positions)
            elif not future.done():
                future.set_result(job.result)

    def _publish_row(self, row: RowWrite) -> Position:
        part, count = row.part, len(row.records)
        name = part.topic.name
        part.end = row.first + count
        if part.subscribers:
            batch = RecordBatch(name, part.number, range(row.first, part.end), row.records)
            for subscriber in part.subscribers:
                subscriber.feed(batch, row.nbytes)
        if part.topic.late:
            _notify(part.topic.late, name, row.records)
        return Position(name, part.number, row.first, count)

    # ------------------------------------------------------------ reading

    def read(self, topics: Iterable[str], *, group: str | None = None, start: Start = "committed") -> Reader:
        self._check()
        names = dict.fromkeys(topics)
        committed = self._groups.get(group, {}) if group is not None else {}

        def begin(part: PartitionState) -> int:
            if start == "latest":
                return part.end
            if start == "earliest":
                return 0
            return (committed if start == "committed" else start).get(part.key, 0)

        parts = [(part, begin(part)) for name in names for part in self._topic(name).parts]
        reader = SqliteReader(self._pool, self._loop, parts, self._to_dead_letters, self._forget)
        self._readers[reader] = frozenset(names)
        return reader

    def _forget(self, reader: SqliteReader) -> None:
        self._readers.pop(reader, None)

    def _to_dead_letters(self, damaged: DamagedRow) -> None:
        """Append a dead letter for a damaged row, once.

        The same transaction marks the row, so that it is not repeated after a restart.
        """
        request = damaged.request
        key = ((request.name, request.partition), damaged.first)
        if key in self._dead_lettered or self._closed:
            return
        self._dead_lettered.add(key)
        logger.error("%s/%d at %d: %s", request.name, request.partition, damaged.first, damaged.reason)
        letter = DeadLetter(
            v=VERSION,
            stage="decode",
            reason=damaged.reason,
            at_us=now_us(),
            topic=request.name,
            partition=request.partition,
            offset=damaged.first,
            record=damaged.record,
            remedy="the disk may be failing: check it; a backup of the log may still have the record",
        )
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        rows, stamped = self._rows(self._topic(DEAD), [Record(encode(letter))], 0)
        self._writer.enqueue(
            WriteJob(future, rows, damaged=(request.topic, request.partition, damaged.first, damaged.count))
        )
        if early := self._topics[DEAD].early:
            _notify(early, DEAD, stamped)

    def trouble(self) -> str:
        return self._writer.trouble

    def watch(
        self, prefix: str, callback: Callable[[str, Sequence[Record]], None], *, early: bool = False
    ) -> Callable[[], None]:
        entry = (prefix, callback, early)
        self._watches.append(entry)
        self._update_watches()

        def end() -> None:
            if entry in self._watches:
                self._watches.remove(entry)
                self._update_watches()

        return end

    def _update_watches(self) -> None:
        for topic in self._topics.values():
            self._apply_watches(topic)

    def _apply_watches(self, topic: TopicState) -> None:
        """Store a topic's watchers with it, so that appends need not search."""
        found = [(c, early) for prefix, c, early in self._watches if topic.name.startswith(prefix)]
        topic.early = tuple(c for c, early in found if early)
        topic.late = tuple(c for c, early in found if not early)

    def join_group(self, topic: str, group: str) -> Assignment:
        self._check()
        assignment = SingleOwner(frozenset(part.number for part in self._topic(topic).parts))
        self._assignments.add(assignment)
        return assignment

    # ------------------------------------------------------------ offsets

    def _parts(self, topics: Iterable[str]) -> Iterable[PartitionState]:
        return (part for name in topics if name in self._topics for part in self._topics[name].parts)

    async def end_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        return {part.key: part.end for part in self._parts(topics)}

    async def begin_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        return {part.key: min(part.begin, part.end) for part in self._parts(topics)}

    async def committed(self, group: str) -> dict[Partition, int]:
        return dict(self._groups.get(group, {}))

    async def lag(self, group: str, topics: Iterable[str]) -> dict[Partition, int]:
        """As in Log; compacted offsets count as records."""
        committed = self._groups.get(group, {})
        return {p.key: max(0, p.end - max(committed.get(p.key, 0), p.begin)) for p in self._parts(topics)}

    # ------------------------------------------------------------ space

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        self._check()
        state = self._topics.get(topic)
        if state is None or not 0 <= partition < len(state.parts):
            raise LogError(f"there is no partition {topic}/{partition}")
        await self._housekeeping.truncate(state.parts[partition], before)

    async def housekeep(
        self, now_ms: int | None = None, needed_from_ms: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        self._check()
        now = process_clock.now_ms() if now_ms is None else now_ms
        return await self._housekeeping.run([t for t in self._topics.values() if t.stored], now, needed_from_ms or {})

    # ------------------------------------------------------------ closing

    def _check(self) -> None:
        if self._closed:
            raise LogError("the log is closed")

    async def close(self) -> None:
        if self._closed:
            return
        # The next start then notices if last rows are missing.
        parts = [
            part for topic in self._topics.values() if topic.stored for part in topic.parts if part.end > part.opened
        ]
        self._closed = True
        if parts:
            with contextlib.suppress(OncueError):  # a full disk
                await self._writer.call(partial(store_ends, parts=parts))
        self._writer.closing = True
        await asyncio.to_thread(self._writer.stop)
        # The writer's last callback is already scheduled: one iteration of the loop runs it.
        await asyncio.sleep(0)
        for reader in list(self._readers):
            reader.end("the log is closed")
        self._readers.clear()
        for assignment in self._assignments:
            await assignment.close()
        await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        self._pool.close()
        try:
            self._db.close()
        except sqlite3.Error as e:
            logger.warning("closing the log: %s", explain(e, self._path).message)
        self._lock.release()


def _newest(records: Sequence[Record]) -> int:
    return records[0].time_ms if len(records) == 1 else max([r.time_ms for r in records])


def _notify(callbacks: Sequence[Callback], topic: str, records: Sequence[Record]) -> None:
    for callback in callbacks:
        try:
            callback(topic, records)
        except Exception:  # other watchers must be called all the same
            logger.exception("a watcher of %s failed", topic)
