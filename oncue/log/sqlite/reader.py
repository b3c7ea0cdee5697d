"""Readers of the embedded log.

    commit ──► Cursor.feed ──► queue ──► next()        live: fresh batches by memory, not read or decoded again
    disk   ──► Cursor.filled ───┘                      behind: the queue was full, or the reader began in the past

A cursor is one partition of one reader. What it has put in the queue ends at `at`. While it is behind, its fresh
batches are left to the disk; during a read up to the end of that moment they are set aside, and follow that read's
batches: so a reader that has come to the end is live again with nothing missing and nothing double.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from oncue.errors import LogError, OncueError
from oncue.log.base import Partition, Reader, RecordBatch
from oncue.log.sqlite import rows
from oncue.log.sqlite.state import Part
from oncue.log.sqlite.store import Damaged, Fetched, Store, Want

QUEUE_BYTES = 16 * 1024 * 1024  # as stored; shared between the readers of a topic. One batch always fits
QUEUE_BATCHES = 16_384
FETCH_PARTITIONS = 512


class Cursor:
    __slots__ = ("aside", "aside_bytes", "at", "live", "part", "reader", "turn")

    def __init__(self, reader: SqliteReader, part: Part, at: int) -> None:
        self.reader = reader
        self.part = part
        self.at = at
        self.live = True
        self.turn = 0  # of seeks: a read from before one is stale
        self.aside: list[tuple[RecordBatch, int]] | None = None
        self.aside_bytes = 0

    def feed(self, batch: RecordBatch, nbytes: int) -> None:
        """A fresh batch, the next of the partition."""
        if self.live:
            self._take(batch, nbytes)
        elif self.aside is not None:
            self.aside.append((batch, nbytes))
            self.aside_bytes += nbytes
            if self.aside_bytes > QUEUE_BYTES:
                self.aside, self.aside_bytes = None, 0

    def _take(self, batch: RecordBatch, nbytes: int) -> None:
        following = batch.next_offset
        if following <= self.at:  # the reader was sent to an offset that is not there yet
            return
        reader = self.reader
        if reader.full(nbytes):
            reader.fall_behind(self)
            return
        reader.put(self, batch if batch.offsets[0] >= self.at else rows.tail(batch, self.at), nbytes)
        self.at = following

    def filled(self, turn: int, fetched: Fetched) -> None:
        """What was read from the disk, up to an end; what came since is set aside."""
        aside, self.aside, self.aside_bytes = self.aside, None, 0
        if turn != self.turn:
            return
        told = self.at
        for batch, nbytes in fetched.batches:
            self.reader.put(self, batch, nbytes)
            told = batch.next_offset
        if fetched.reached > told:  # what is there is damaged: who waits for the end should know that it is passed
            part = self.part
            self.reader.put(self, RecordBatch(part.topic.name, part.number, (), (), fetched.reached), 0)
        self.at = max(self.at, fetched.reached)
        if self.at >= self.part.end or (aside and self.at >= aside[0][0].offsets[0]):
            self.reader.catch_up(self)
            for batch, nbytes in aside or ():
                self.feed(batch, nbytes)


class SqliteReader(Reader):
    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        parts: Iterable[tuple[Part, int]],
        bury: Callable[[Damaged], None],
        forget: Callable[[SqliteReader], None],
    ) -> None:
        self._store = store
        self._loop = loop
        self._bury = bury
        self._forget = forget
        self._queue: deque[tuple[Cursor, RecordBatch, int]] = deque()
        self._bytes = 0
        self._behind: dict[Cursor, None] = {}  # in the order of their turns
        self._fetching = False
        self._fresh = asyncio.Event()
        self._error: OncueError | None = None
        self._closed = ""
        self._cursors: dict[Partition, Cursor] = {}
        for part, at in parts:
            self.follow(part, at)

    # ------------------------------------------------------------ for users

    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        while True:
            if self._closed:
                raise LogError(self._closed)
            if self._behind and not self._fetching:
                self._fetch()
            if self._queue:
                return self._pop(max_batches)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._fresh.clear()
            await self._fresh.wait()

    async def seek(self, partition: Partition, offset: int) -> None:
        cursor = self._cursors.get(partition)
        if cursor is None:
            raise LogError(f"this reader does not read {partition[0]}/{partition[1]}")
        kept = [item for item in self._queue if item[0] is not cursor]
        self._queue = deque(kept)
        self._bytes = sum(item[2] for item in kept)
        cursor.turn += 1
        cursor.aside = None
        self._place(cursor, offset)

    async def close(self) -> None:
        self.end("the reader is closed")
        self._forget(self)

    # ------------------------------------------------------------ for the log and the cursors

    def follow(self, part: Part, at: int) -> None:
        """Read this partition too."""
        cursor = self._cursors[part.key] = Cursor(self, part, at)
        part.cursors.append(cursor)
        self._place(cursor, at)

    def end(self, why: str) -> None:
        if not self._closed:
            self._closed = why
        for cursor in self._cursors.values():
            if cursor in cursor.part.cursors:
                cursor.part.cursors.remove(cursor)
        self._queue.clear()
        self._behind.clear()
        self._fresh.set()

    def full(self, nbytes: int) -> bool:
        queued = len(self._queue)
        return queued >= QUEUE_BATCHES or (queued > 0 and self._bytes + nbytes > QUEUE_BYTES)

    def put(self, cursor: Cursor, batch: RecordBatch, nbytes: int) -> None:
        self._queue.append((cursor, batch, nbytes))
        self._bytes += nbytes
        self._fresh.set()

    def fall_behind(self, cursor: Cursor) -> None:
        cursor.live = False
        self._behind[cursor] = None
        self._fresh.set()

    def catch_up(self, cursor: Cursor) -> None:
        cursor.live = True
        self._behind.pop(cursor, None)

    # ------------------------------------------------------------ inside

    def _place(self, cursor: Cursor, at: int) -> None:
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

    def _fetch(self) -> None:
        """Read on behind the queue while its user works; not more than the queue holds."""
        if self._bytes > QUEUE_BYTES // 2 or len(self._queue) > QUEUE_BATCHES // 2:
            return
        cursors = [c for c, _ in zip(self._behind, range(FETCH_PARTITIONS), strict=False)]
        wants: list[Want] = []
        for cursor in cursors:
            part = cursor.part
            cursor.aside, cursor.aside_bytes = [], 0
            wants.append(Want(part.topic.id, part.topic.name, part.number, cursor.at, part.end))
        turns = [c.turn for c in cursors]
        self._fetching = True
        reading = self._store.run(self._loop, self._store.fetch, wants)
        reading.add_done_callback(lambda done: self._fetched(cursors, turns, done))

    def _fetched(self, cursors: list[Cursor], turns: list[int], done: asyncio.Future[list[Fetched]]) -> None:
        self._fetching = False
        if done.cancelled() or self._closed:
            return
        error = done.exception()
        if error is not None:
            for cursor in cursors:
                cursor.aside = None
            self._error = error if isinstance(error, OncueError) else LogError(f"reading the log failed: {error}")
        else:
            for cursor, turn, fetched in zip(cursors, turns, done.result(), strict=True):
                for damaged in fetched.damaged:
                    self._bury(damaged)
                cursor.filled(turn, fetched)
                if fetched.batches and cursor in self._behind:  # to the end of the line: others have their turn
                    del self._behind[cursor]
                    self._behind[cursor] = None
        self._fresh.set()
