"""Making room: truncation, retention by age and size, compaction by key, and giving freed pages back to the disk.

All of it in bites that go through the writer's queue like appends, so that an append waits for one bite at most.
Offsets are never given twice: before the last row of a partition may go, its next offset is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from oncue.errors import DiskFull, Undecodable
from oncue.log.base import Record
from oncue.log.sqlite import rows
from oncue.log.sqlite.ballast import Ballast
from oncue.log.sqlite.database import PAGE_BYTES, WAL_BYTES
from oncue.log.sqlite.state import Part, TopicState
from oncue.log.sqlite.store import Store
from oncue.log.sqlite.writer import Writer

BITE_ROWS = 256
BITE_BYTES = 4 * 1024 * 1024
VACUUM_PAGES = 256
SPARE_PAGES = 2 * WAL_BYTES // PAGE_BYTES  # free pages that stay: writing into them is quicker than growing the file
TOMBSTONE_MS = 24 * 3600 * 1000  # a reader that is behind by less than this learns what was deleted (Kafka's default)

META = "SELECT first, count, time_ms, offsets, length(blob) FROM batches WHERE topic = ? AND partition = ?"
OLD_BYTES = "SELECT sum(length(blob)) FROM batches WHERE topic = ? AND partition = ? AND first < ?"
SIZES = """SELECT first, length(blob) FROM batches
 WHERE topic = ? AND partition = ? AND first >= ? AND first < ? ORDER BY first LIMIT ?"""
STORED = """SELECT first, count, crc, offsets, blob FROM batches
 WHERE topic = ? AND partition = ? AND first BETWEEN ? AND ? ORDER BY first"""
FLOOR = "UPDATE partitions SET next = max(next, ?) WHERE topic = ? AND partition = ?"
T = TypeVar("T")
Stored = tuple[int, int, int, bytes | None, bytes]
Row = tuple[int, int, int, bytes | None, int]
Goes = Callable[[Row, int], bool]  # (row, bytes of the partition that are left) -> it goes


class Housekeeping:
    def __init__(self, writer: Writer, store: Store, ballast: Ballast, loop: asyncio.AbstractEventLoop) -> None:
        self._ballast = ballast
        self._writer = writer
        self._store = store
        self._loop = loop
        self._one = asyncio.Lock()

    async def truncate(self, part: Part, before: int) -> int:
        """Whole rows below the offset go. Bytes freed."""
        if before <= part.begin:
            return 0
        async with self._one:
            freed = await self._roomy(lambda: self._drop(part, lambda r, _: rows.end_of(r[0], r[1], r[3]) <= before))
            await self._shrink()
        return freed

    async def run(self, topics: list[TopicState], now_ms: int) -> dict[str, int]:
        """Retention and compaction of these topics. Bytes freed a topic, where there were any."""
        freed: dict[str, int] = {}
        async with self._one:
            for topic in topics:
                total = 0
                for part in topic.parts:
                    total += await self._roomy(partial(self._retain, part, now_ms))
                    if topic.settings.compact:
                        total += await self._roomy(partial(self._compact, part, now_ms))
                if total:
                    freed[topic.name] = total
            await self._shrink()
        return freed

    async def _roomy(self, work: Callable[[], Awaitable[int]]) -> int:
        """Bytes freed. On a full disk the ballast goes first, and the file shrinks as soon as something was deleted."""
        try:
            return await work()
        except DiskFull:
            if not self._ballast.drop():
                raise
        # A checkpoint would give the new room to the database file before anything was deleted.
        self._writer.hold = True
        try:
            freed = await work()
            await self._shrink(0)
        finally:
            self._writer.hold = False
        return freed

    # ------------------------------------------------------------ retention

    async def _retain(self, part: Part, now_ms: int) -> int:
        settings, freed = part.topic.settings, 0
        if settings.retention_ms and part.begin < part.end:
            oldest = now_ms - settings.retention_ms
            freed += await self._drop(part, lambda row, _: row[2] < oldest)
        if settings.retention_bytes and part.begin < part.end:
            await self._measure(part)
            # Not less than the limit stays, as with Kafka: the row that crosses it is kept.
            most = settings.retention_bytes
            if part.old_bytes + part.grown_bytes > most:
                freed += await self._drop(part, lambda row, left: left - row[4] >= most)
        return freed

    async def _measure(self, part: Part) -> None:
        """Count once, off the loop, what was there before this start."""
        if part.old_bytes < 0:
            found = await self._store.run(
                self._loop, self._store.rows, OLD_BYTES, (part.topic.id, part.number, part.opened)
            )
            part.old_bytes = found[0][0] or 0

    async def _drop(self, part: Part, goes: Goes) -> int:
        """Remove rows from the front for as long as they go. Bytes freed."""
        freed = 0
        while True:
            shorter = Shorter(part)
            bite: tuple[int, int, bool] = await self._writer.call(
                partial(_drop_bite, shorter=shorter, goes=goes), shorter.committed
            )
            gone, begin, more = bite
            part.begin = max(part.begin, begin)
            freed += gone
            if not more:
                return freed

    # ------------------------------------------------------------ compaction

    async def _compact(self, part: Part, now_ms: int) -> int:
        """Two walks: which offset is each key's newest, then rewrite the rows that hold others."""
        end, fresh = part.end, part.end - part.compacted
        due = 0 < part.tombstone_ms <= now_ms
        # Worth it when a tenth is new: so a large registry is not read again for each small change.
        if part.begin >= end or (not due and fresh * 10 <= part.live):
            return 0
        newest: dict[bytes, int] = {}
        freed, part.live, part.tombstone_ms = 0, 0, 0

        def note(row: Stored) -> None:
            offsets, records = rows.decode(*row)
            newest.update((r.key, offset) for offset, r in zip(offsets, records, strict=True) if r.key)

        def stays(offset: int, record: Record) -> bool:
            if record.key and newest.get(record.key, offset) != offset:
                return False
            if record.key and not record.value:
                leaves = record.time_ms + TOMBSTONE_MS
                if leaves <= now_ms:
                    return False
                part.tombstone_ms = min(part.tombstone_ms or leaves, leaves)
            part.live += 1
            return True

        async for _ in self._walk(part, end, note):
            pass
        async for found in self._walk(part, end, lambda row: _rewritten(row, stays)):
            changes = [change for change in found if change is not None]
            if changes:
                shorter = Shorter(part)
                bite, begin = await self._writer.call(
                    partial(_apply, shorter=shorter, changes=changes), shorter.committed
                )
                part.begin = max(part.begin, begin)
                freed += bite
        part.compacted = end
        return freed

    async def _walk(self, part: Part, end: int, work: Callable[[Stored], T]) -> AsyncIterator[list[T]]:
        """`work` on each row below `end`, off the loop; its results a bite at a time. Damaged rows are left out:
        a reader buries them."""
        at = 0
        while True:
            found, at = await self._store.run(self._loop, self._bite, part, at, end, work)
            if not at:
                return
            yield found

    def _bite(self, part: Part, at: int, end: int, work: Callable[[Stored], T]) -> tuple[list[T], int]:
        """The results, and where to go on; 0: at the end."""
        key = (part.topic.id, part.number)
        sizes = self._store.rows(SIZES, (*key, at, end, BITE_ROWS))
        total, last = 0, -1
        for first, size in sizes:
            total += size
            if total > BITE_BYTES and last >= 0:
                break
            last = first
        if last < 0:
            return [], 0
        done: list[T] = []
        for row in self._store.rows(STORED, (*key, at, last)):
            try:
                done.append(work(row))
            except Undecodable:
                continue
        return done, last + 1

    # ------------------------------------------------------------ the file

    async def _shrink(self, keep: int = SPARE_PAGES) -> None:
        """Give pages that nobody needs back to the disk."""
        found = False
        with contextlib.suppress(DiskFull):  # what was deleted stays deleted, and its pages are used again
            while await self._writer.call(partial(_vacuum_bite, keep=keep), frames=VACUUM_PAGES):
                found = True
        if found or not keep:
            await self._writer.call(None)  # the file gets shorter at the checkpoint
        await asyncio.to_thread(self._ballast.take)


class Shorter:
    """What a bite takes from a partition's sizes, once it is durable. In the writer's thread."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._old = self._grown = 0

    def take(self, first: int, nbytes: int) -> None:
        if first >= self.part.opened:
            self._grown += nbytes
        else:
            self._old += nbytes

    def committed(self) -> None:
        self.part.grown_bytes -= self._grown
        if self.part.old_bytes >= 0:
            self.part.old_bytes -= self._old


def _drop_bite(db: sqlite3.Connection, shorter: Shorter, goes: Goes) -> tuple[int, int, bool]:
    """In the writer's thread: (bytes freed, first kept offset, whether more may go)."""
    part = shorter.part
    key = (part.topic.id, part.number)
    cursor = db.execute(META + " ORDER BY first", key)
    left = max(part.old_bytes, 0) + part.grown_bytes
    freed, taken, last, begin, more = 0, 0, -1, part.next, False
    for row in cursor:
        if taken >= BITE_ROWS or (taken and freed + row[4] > BITE_BYTES):
            begin, more = row[0], True
            break
        if not goes(row, left):
            begin = row[0]
            break
        taken += 1
        last = row[0]
        left -= row[4]
        freed += row[4]
        shorter.take(row[0], row[4])
    cursor.close()
    if taken:
        db.execute(FLOOR, (part.next, *key))
        db.execute("DELETE FROM batches WHERE topic = ? AND partition = ? AND first <= ?", (*key, last))
    return freed, begin, more


def _rewritten(row: Stored, stays: Callable[[int, Record], bool]) -> tuple[Any, ...] | None:
    """What a row becomes: (first, its bytes, None) to go, (first, its bytes, new columns), or None to stay as it is."""
    first, _, _, _, blob = row
    offsets, records = rows.decode(*row)
    kept = [(o, r) for o, r in zip(offsets, records, strict=True) if stays(o, r)]
    if len(kept) == len(records):
        return None
    if not kept:
        return (first, len(blob), None)
    new = rows.encode([r for _, r in kept])
    places = rows.encode_offsets([o for o, _ in kept])
    return (first, len(blob), (len(kept), rows.checksum(new), places, new))


def _apply(db: sqlite3.Connection, shorter: Shorter, changes: list[tuple[Any, ...]]) -> tuple[int, int]:
    """In the writer's thread: (bytes freed, first kept offset)."""
    part = shorter.part
    key = (part.topic.id, part.number)
    db.execute(FLOOR, (part.next, *key))
    freed = 0
    for first, size, columns in changes:
        gone = size
        if columns is None:
            db.execute("DELETE FROM batches WHERE topic = ? AND partition = ? AND first = ?", (*key, first))
        else:
            gone -= len(columns[3])
            db.execute(
                "UPDATE batches SET count = ?, crc = ?, offsets = ?, blob = ?"
                " WHERE topic = ? AND partition = ? AND first = ?",
                (*columns, *key, first),
            )
        shorter.take(first, gone)
        freed += gone
    begin = db.execute(META + " ORDER BY first LIMIT 1", key).fetchone()
    return freed, begin[0] if begin else part.next


def _vacuum_bite(db: sqlite3.Connection, keep: int) -> bool:
    """In the writer's thread: whether there is more to give back."""
    spare = db.execute("PRAGMA freelist_count").fetchone()[0] - keep
    if spare <= 0:
        return False
    # Python's sqlite3 makes one step of this pragma, whatever its argument, and a step is a page.
    for _ in range(min(spare, VACUUM_PAGES)):
        db.execute("PRAGMA incremental_vacuum")
    return bool(db.execute("PRAGMA freelist_count").fetchone()[0] < spare + keep)
