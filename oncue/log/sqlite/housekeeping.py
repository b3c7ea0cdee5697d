"""Truncation, retention, compaction by key, and release of free pages.

Works in small steps. Each passes through the writer's queue like an append, so an append waits for
one step at most. Offsets are never reused: before rows are deleted, the partition's next offset is
stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from oncue.errors import DiskFull, Undecodable
from oncue.log.base import Record
from oncue.log.sqlite import rows
from oncue.log.sqlite.ballast import Ballast
from oncue.log.sqlite.database import PAGE_BYTES, WAL_BYTES
from oncue.log.sqlite.read_pool import ReadPool
from oncue.log.sqlite.rows import StoredRow
from oncue.log.sqlite.state import PartitionState, TopicState
from oncue.log.sqlite.writer import WriterThread, store_bounds

STEP_ROWS = 256
STEP_BYTES = 4 * 1024 * 1024
VACUUM_PAGES = 256
SPARE_PAGES = 2 * WAL_BYTES // PAGE_BYTES  # free pages to keep: faster than growing the file again
TOMBSTONE_MS = 24 * 3600 * 1000  # readers that lag by less see deletions (Kafka's default)

META = "SELECT first, count, time_ms, offsets, length(blob) FROM batches WHERE topic = ? AND partition = ?"
OLD_BYTES = "SELECT sum(length(blob)) FROM batches WHERE topic = ? AND partition = ? AND first < ?"
SIZES = """SELECT first, length(blob) FROM batches
 WHERE topic = ? AND partition = ? AND first >= ? AND first < ? ORDER BY first LIMIT ?"""
STORED = """SELECT * FROM batches
 WHERE topic = ? AND partition = ? AND first BETWEEN ? AND ? ORDER BY first"""
T = TypeVar("T")
RowMeta = tuple[int, int, int, bytes | None, int]
Removable = Callable[[RowMeta, int], bool]  # (row, bytes left in the partition) -> delete it


class Housekeeping:
    """Frees space in partitions, one task at a time."""

    def __init__(self, writer: WriterThread, pool: ReadPool, ballast: Ballast, loop: asyncio.AbstractEventLoop) -> None:
        self._ballast = ballast
        self._writer = writer
        self._pool = pool
        self._loop = loop
        self._lock = asyncio.Lock()

    async def truncate(self, part: PartitionState, before: int) -> int:
        """Delete rows that lie below the offset entirely; return the freed bytes."""
        if before <= part.begin:
            return 0
        async with self._lock:
            freed = await self._with_ballast(
                lambda: self._delete(part, lambda r, _: rows.end_of(r[0], r[1], r[3]) <= before)
            )
            await self._shrink()
        return freed

    async def run(self, topics: list[TopicState], now_ms: int, needed_from_ms: Mapping[str, int]) -> dict[str, int]:
        """Apply retention and compaction; return bytes freed, by topic."""
        freed: dict[str, int] = {}
        async with self._lock:
            for topic in topics:
                total = 0
                for part in topic.parts:
                    total += await self._with_ballast(partial(self._retain, part, now_ms, needed_from_ms))
                    if topic.settings.compact:
                        total += await self._with_ballast(partial(self._compact, part, now_ms))
                if total:
                    freed[topic.name] = total
            await self._shrink()
        return freed

    async def _with_ballast(self, work: Callable[[], Awaitable[int]]) -> int:
        """Run `work`; on a full disk release the ballast, then try again.

        Returns the freed bytes. After the second try the file shrinks at once.
        """
        try:
            return await work()
        except DiskFull:
            if not self._ballast.release():
                raise
        # A checkpoint now would use the new space for the database file before anything is deleted.
        self._writer.hold = True
        try:
            freed = await work()
            await self._shrink(0)
        finally:
            self._writer.hold = False
        return freed

    # ------------------------------------------------------------ retention

    async def _retain(self, part: PartitionState, now_ms: int, needed_from_ms: Mapping[str, int]) -> int:
        settings, freed = part.topic.settings, 0
        if settings.retention_ms and part.begin < part.end:
            oldest = now_ms - settings.retention_ms
            oldest = min(oldest, needed_from_ms.get(part.topic.name, oldest))
            freed += await self._delete(part, lambda row, _: not isinstance(row[2], int) or row[2] < oldest)
        if settings.retention_bytes and part.begin < part.end:
            await self._count_old_bytes(part)
            # At least the limit is kept, as in Kafka: a row that crosses it stays.
            limit = settings.retention_bytes
            if part.old_bytes + part.grown_bytes > limit:
                freed += await self._delete(part, lambda row, left: left - row[4] >= limit)
        return freed

    async def _count_old_bytes(self, part: PartitionState) -> None:
        """Count, once, the bytes of rows written before this start."""
        if part.old_bytes < 0:
            found = await self._pool.run(
                self._loop, self._pool.rows, OLD_BYTES, (part.topic.id, part.number, part.opened)
            )
            part.old_bytes = found[0][0] or 0

    async def _delete(self, part: PartitionState, removable: Removable) -> int:
        """Delete the oldest rows while `removable`; return the freed bytes."""
        freed = 0
        while True:
            sizes = FreedBytes(part)
            step: tuple[int, int, bool] = await self._writer.call(
                partial(_delete_step, sizes=sizes, removable=removable), sizes.committed
            )
            step_freed, begin, more = step
            part.begin = max(part.begin, begin)
            freed += step_freed
            if not more:
                return freed

    # ------------------------------------------------------------ compaction

    async def _compact(self, part: PartitionState, now_ms: int) -> int:
        """Find the latest offset of each key, then rewrite rows that hold older ones."""
        end, new = part.end, part.end - part.compacted
        due = 0 < part.tombstone_ms <= now_ms
        # Only if a tenth is new: a large registry is not read again for each small change.
        if part.begin >= end or (not due and new * 10 <= part.live):
            return 0
        latest: dict[bytes, int] = {}
        freed, part.live, part.tombstone_ms = 0, 0, 0

        def note(row: StoredRow) -> None:
            offsets, records = rows.decode(row)
            latest.update((r.key, offset) for offset, r in zip(offsets, records, strict=True) if r.key)

        def is_kept(offset: int, record: Record) -> bool:
            if record.key and latest.get(record.key, offset) != offset:
                return False
            if record.key and not record.value:
                expires = record.time_ms + TOMBSTONE_MS
                if expires <= now_ms:
                    return False
                part.tombstone_ms = min(part.tombstone_ms or expires, expires)
            part.live += 1
            return True

        async for _ in self._scan(part, end, note):
            pass
        async for found in self._scan(part, end, lambda row: _rewritten(row, is_kept)):
            changes = [change for change in found if change is not None]
            if changes:
                sizes = FreedBytes(part)
                step_freed, begin = await self._writer.call(
                    partial(_apply, sizes=sizes, changes=changes), sizes.committed
                )
                part.begin = max(part.begin, begin)
                freed += step_freed
        part.compacted = end
        return freed

    async def _scan(self, part: PartitionState, end: int, work: Callable[[StoredRow], T]) -> AsyncIterator[list[T]]:
        """Call `work` on each row below `end`; yield the results of each step.

        Runs in a read thread. Skips damaged rows: a reader moves them to the dead letters.
        """
        at = 0
        while True:
            found, at = await self._pool.run(self._loop, self._scan_step, part, at, end, work)
            if not at:
                return
            yield found

    def _scan_step(
        self, part: PartitionState, at: int, end: int, work: Callable[[StoredRow], T]
    ) -> tuple[list[T], int]:
        """Return one step's results and the next step's offset; 0 at the end."""
        key = (part.topic.id, part.number)
        sizes = self._pool.rows(SIZES, (*key, at, end, STEP_ROWS))
        total, last = 0, -1
        for first, size in sizes:
            total += size
            if total > STEP_BYTES and last >= 0:
                break
            last = first
        if last < 0:
            return [], 0
        done: list[T] = []
        for row in self._pool.rows(STORED, (*key, at, last)):
            try:
                done.append(work(row))
            except Undecodable:
                continue
        return done, last + 1

    # ------------------------------------------------------------ the file

    async def _shrink(self, keep: int = SPARE_PAGES) -> None:
        """Return free pages to the disk, except `keep`."""
        found = False
        with contextlib.suppress(DiskFull):  # rows stay deleted, and their pages are reused
            while await self._writer.call(partial(_vacuum_step, keep=keep), frames=VACUUM_PAGES):
                found = True
        if found or not keep:
            await self._writer.call(None)  # the checkpoint truncates the file
        await asyncio.to_thread(self._ballast.create)


class FreedBytes:
    """Subtracts a step's freed bytes from a partition's sizes once it is durable.

    Used in the writer thread.
    """

    def __init__(self, part: PartitionState) -> None:
        self.part = part
        self._old = self._grown = 0

    def add(self, first: int, nbytes: int) -> None:
        if first >= self.part.opened:
            self._grown += nbytes
        else:
            self._old += nbytes

    def committed(self) -> None:
        self.part.grown_bytes -= self._grown
        if self.part.old_bytes >= 0:
            self.part.old_bytes -= self._old


def _delete_step(db: sqlite3.Connection, sizes: FreedBytes, removable: Removable) -> tuple[int, int, bool]:
    """Delete the oldest rows, up to one step.

    Returns freed bytes, the first kept offset, and True if more may be deleted.
    Runs in the writer thread.
    """
    part = sizes.part
    key = (part.topic.id, part.number)
    cursor = db.execute(META + " ORDER BY first", key)
    left = max(part.old_bytes, 0) + part.grown_bytes
    freed, count, last, begin, more = 0, 0, -1, part.next, False
    for row in cursor:
        if count >= STEP_ROWS or (count and freed + row[4] > STEP_BYTES):
            begin, more = row[0], True
            break
        if not removable(row, left):
            begin = row[0]
            break
        count += 1
        last = row[0]
        left -= row[4]
        freed += row[4]
        sizes.add(row[0], row[4])
    cursor.close()
    if count:
        store_bounds(db, part, begin)
        db.execute("DELETE FROM batches WHERE topic = ? AND partition = ? AND first <= ?", (*key, last))
    return freed, begin, more


def _rewritten(row: StoredRow, is_kept: Callable[[int, Record], bool]) -> tuple[Any, ...] | None:
    """Return a row's change: (first offset, bytes, new columns), or None.

    None keeps the row as it is; if the new columns are None, it is deleted.
    """
    topic, partition, first, _, time_ms, _, _, blob = row
    offsets, records = rows.decode(row)
    kept = [(o, r) for o, r in zip(offsets, records, strict=True) if is_kept(o, r)]
    if len(kept) == len(records):
        return None
    if not kept:
        return (first, len(blob), None)
    new = rows.encode([r for _, r in kept])
    numbers = rows.encode_offsets([o for o, _ in kept])
    crc = rows.checksum(topic, partition, first, len(kept), time_ms, numbers, new)
    return (first, len(blob), (len(kept), crc, numbers, new))


def _apply(db: sqlite3.Connection, sizes: FreedBytes, changes: list[tuple[Any, ...]]) -> tuple[int, int]:
    """Apply changes of `_rewritten`; return freed bytes and first kept offset.

    Runs in the writer thread.
    """
    part = sizes.part
    key = (part.topic.id, part.number)
    freed = 0
    for first, size, columns in changes:
        shrunk = size
        if columns is None:
            db.execute("DELETE FROM batches WHERE topic = ? AND partition = ? AND first = ?", (*key, first))
        else:
            shrunk -= len(columns[3])
            db.execute(
                "UPDATE batches SET count = ?, crc = ?, offsets = ?, blob = ?"
                " WHERE topic = ? AND partition = ? AND first = ?",
                (*columns, *key, first),
            )
        sizes.add(first, shrunk)
        freed += shrunk
    row = db.execute(META + " ORDER BY first LIMIT 1", key).fetchone()
    begin = row[0] if row else part.next
    store_bounds(db, part, begin)
    return freed, begin


def _vacuum_step(db: sqlite3.Connection, keep: int) -> bool:
    """Release free pages; True if there are more. Runs in the writer thread."""
    spare = db.execute("PRAGMA freelist_count").fetchone()[0] - keep
    if spare <= 0:
        return False
    # Python's sqlite3 executes one step of this pragma, whatever its argument: one page.
    for _ in range(min(spare, VACUUM_PAGES)):
        db.execute("PRAGMA incremental_vacuum")
    return bool(db.execute("PRAGMA freelist_count").fetchone()[0] < spare + keep)
