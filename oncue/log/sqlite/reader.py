"""Readers of the embedded log.

    commit ──► Cursor.feed ──────► queue ──► next()   live: new batches come from memory
    disk ────► Cursor.add_fetched ───┘                behind: queue was full, or started earlier

A cursor is one partition of one reader. It has queued everything before its offset `at`. While it
is behind, new batches are not queued but read from the disk later. During the read that reaches
the current end, new batches are deferred and queued after that read: the cursor is then live
again, and has neither lost nor repeated a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from oncue.errors import LogError, OncueError
from oncue.log.base import Partition, Reader, RecordBatch
from oncue.log.sqlite import rows
from oncue.log.sqlite.read_pool import DamagedRow, ReadPool, ReadRequest, ReadResult
from oncue.log.sqlite.state import PartitionState

QUEUE_BYTES = 16 * 1024 * 1024  # stored size; one batch always fits. Readers share their batches
QUEUE_BATCHES = 16_384
FETCH_PARTITIONS = 512


class Cursor:
    """Position of a reader in one partition."""

    __slots__ = ("at", "deferred", "deferred_bytes", "generation", "live", "part", "reader")

    def __init__(self, reader: SqliteReader, part: PartitionState, at: int) -> None:
        self.reader = reader
        self.part = part
        self.at = at
        self.live = True
        self.generation = 0  # counts seeks; a read of an older generation is stale
        self.deferred: list[tuple[RecordBatch, int]] | None = None
        self.deferred_bytes = 0

    def feed(self, batch: RecordBatch, nbytes: int) -> None:
        """Handle the next new batch of the partition."""
        if self.live:
            self._enqueue(batch, nbytes)
        elif self.deferred is not None:
            self.deferred.append((batch, nbytes))
            self.deferred_bytes += nbytes
            if self.deferred_bytes > QUEUE_BYTES:
                self.deferred, self.deferred_bytes = None, 0

    def _enqueue(self, batch: RecordBatch, nbytes: int) -> None:
        next_offset = batch.next_offset
        if next_offset <= self.at:  # the reader waits for an offset that does not exist yet
            return
        reader = self.reader
        if reader.is_full(nbytes):
            reader.fall_behind(self)
            return
        reader.enqueue(self, batch if batch.offsets[0] >= self.at else rows.tail(batch, self.at), nbytes)
        self.at = next_offset

    def add_fetched(self, generation: int, fetched: ReadResult) -> None:
        """Queue batches read from the disk, then deferred ones if reached."""
        deferred, self.deferred, self.deferred_bytes = self.deferred, None, 0
        if generation != self.generation:
            return
        queued = self.at
        for batch, nbytes in fetched.batches:
            self.reader.enqueue(self, batch, nbytes)
            queued = batch.next_offset
        if fetched.reached > queued:  # the rest is damaged: an empty batch moves the reader past it
            part = self.part
            self.reader.enqueue(self, RecordBatch(part.topic.name, part.number, (), (), fetched.reached), 0)
        self.at = max(self.at, fetched.reached)
        if self.at >= self.part.end or (deferred and self.at >= deferred[0][0].offsets[0]):
            self.reader.catch_up(self)
            for batch, nbytes in deferred or ():
                self.feed(batch, nbytes)


class SqliteReader(Reader):
    """Reader of any number of partitions, with one queue."""

    def __init__(
        self,
        pool: ReadPool,
        loop: asyncio.AbstractEventLoop,
        parts: Iterable[tuple[PartitionState, int]],
        to_dead_letters: Callable[[DamagedRow], None],
        forget: Callable[[SqliteReader], None],
    ) -> None:
        self._pool = pool
        self._loop = loop
        self._to_dead_letters = to_dead_letters
        self._forget = forget
        self._queue: deque[tuple[Cursor, RecordBatch, int]] = deque()
        self._bytes = 0
        self._behind: dict[Cursor, None] = {}  # in fetch order
        self._fetching = False
        self._changed = asyncio.Event()  # the queue, an error, or closed
        self._error: OncueError | None = None
        self._closed = ""
        self._cursors: dict[Partition, Cursor] = {}
        for part, at in parts:
            self.add_partition(part, at)

    # ------------------------------------------------------------ Reader

    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        while True:
            if self._closed:
                raise LogError(self._closed)
            if self._behind and not self._fetching:
                self._start_fetch()
            if self._queue:
                return self._pop(max_batches)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._changed.clear()
            await self._changed.wait()

    async def seek(self, partition: Partition, offset: int) -> None:
        cursor = self._cursors.get(partition)
        if cursor is None:
            raise LogError(f"this reader does not read {partition[0]}/{partition[1]}")
        kept = [item for item in self._queue if item[0] is not cursor]
        self._queue = deque(kept)
        self._bytes = sum(item[2] for item in kept)
        cursor.generation += 1
        cursor.deferred = None
        self._place(cursor, offset)

    async def close(self) -> None:
        self.end("the reader is closed")
        self._forget(self)

    # ------------------------------------------------------------ for the log and the cursors

    def add_partition(self, part: PartitionState, at: int) -> None:
        """Read this partition, too, from offset `at`."""
        cursor = self._cursors[part.key] = Cursor(self, part, at)
        part.subscribers.append(cursor)
        self._place(cursor, at)

    def end(self, why: str) -> None:
        """Close, and make `next` raise LogError(why)."""
        if not self._closed:
            self._closed = why
        for cursor in self._cursors.values():
            if cursor in cursor.part.subscribers:
                cursor.part.subscribers.remove(cursor)
        self._queue.clear()
        self._behind.clear()
        self._changed.set()

    def is_full(self, nbytes: int) -> bool:
        """True if a batch of this size does not fit into the queue."""
        queued = len(self._queue)
        return queued >= QUEUE_BATCHES or (queued > 0 and self._bytes + nbytes > QUEUE_BYTES)

    def enqueue(self, cursor: Cursor, batch: RecordBatch, nbytes: int) -> None:
        self._queue.append((cursor, batch, nbytes))
        self._bytes += nbytes
        self._changed.set()

    def fall_behind(self, cursor: Cursor) -> None:
        """Switch a cursor from memory to reads from the disk."""
        cursor.live = False
        self._behind[cursor] = None
        self._changed.set()

    def catch_up(self, cursor: Cursor) -> None:
        """Switch a cursor back to new batches from memory."""
        cursor.live = True
        self._behind.pop(cursor, None)

    # ------------------------------------------------------------ inside

    def _place(self, cursor: Cursor, at: int) -> None:
        """Set a cursor's offset."""
        cursor.at = max(at, cursor.part.begin)
        if cursor.at >= cursor.part.end:
            self.catch_up(cursor)
        else:
            self.fall_behind(cursor)

    def _pop(self, most: int) -> list[RecordBatch]:
        queued = self._queue
        if len(queued) <= most:
            found = [batch for _, batch, _ in queued]
            queued.clear()
            self._bytes = 0
            return found
        found = []
        for _ in range(most):
            _, batch, nbytes = queued.popleft()
            found.append(batch)
            self._bytes -= nbytes
        return found

    def _start_fetch(self) -> None:
        """Read ahead while the caller processes batches, if half of the queue is free."""
        if self._bytes > QUEUE_BYTES // 2 or len(self._queue) > QUEUE_BATCHES // 2:
            return
        cursors = [c for c, _ in zip(self._behind, range(FETCH_PARTITIONS), strict=False)]
        requests: list[ReadRequest] = []
        for cursor in cursors:
            part = cursor.part
            cursor.deferred, cursor.deferred_bytes = [], 0
            topic = part.topic
            requests.append(ReadRequest(topic.id, topic.name, part.number, cursor.at, part.end, topic.settings.compact))
        generations = [c.generation for c in cursors]
        self._fetching = True
        reading = self._pool.run(self._loop, self._pool.fetch, requests)
        reading.add_done_callback(lambda done: self._finish_fetch(cursors, generations, done))

    def _finish_fetch(
        self, cursors: list[Cursor], generations: list[int], done: asyncio.Future[list[ReadResult]]
    ) -> None:
        self._fetching = False
        if done.cancelled() or self._closed:
            return
        error = done.exception()
        if error is not None:
            for cursor in cursors:
                cursor.deferred = None
            self._error = error if isinstance(error, OncueError) else LogError(f"reading the log failed: {error}")
        else:
            for cursor, generation, fetched in zip(cursors, generations, done.result(), strict=True):
                for damaged in fetched.damaged:
                    self._to_dead_letters(damaged)
                cursor.add_fetched(generation, fetched)
                if fetched.batches and cursor in self._behind:  # round robin
                    del self._behind[cursor]
                    self._behind[cursor] = None
        self._changed.set()
