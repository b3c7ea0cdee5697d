"""Applies log batches to the view's tables. Runs in the view's writer thread.

    group of batches ──► BEGIN ── records to rows ── positions ── COMMIT ──► Applied

A group and the positions after it are one transaction: after a crash the group is applied again, or
was applied completely. Records that were applied before are skipped. The order of topics does not
matter, so task frames go first: their results then find them.

The fast path uses no savepoints and handles whole frames. If a frame needs more (NeedsFold), or a
record cannot be applied, the group is rolled back and repeated on the careful path: each record in
a savepoint, results folded one by one. Records that cannot be applied become dead letters.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from oncue.clocks.process import now_us
from oncue.errors import OncueError
from oncue.log import Partition, Record, RecordBatch
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import (
    EVENT_BYTES,
    Cancel,
    Claim,
    DeadLetter,
    Fence,
    Resolution,
    ResultFrame,
    TaskFrame,
    headers_within_limit,
)
from oncue.protocol.reports import Output, Started, Usage
from oncue.protocol.topics import DEAD, EVENTS, REGISTRY, TASKS_PREFIX
from oncue.view import record_rows, registry_rows
from oncue.view.bulk_sql import run
from oncue.view.chains import letter_rows
from oncue.view.decoding import UnknownKind, decode_record
from oncue.view.interning import CallInterner
from oncue.view.last_records import last_records
from oncue.view.schema import KINDS
from oncue.view.tasks import ClosedTask, NeedsFold, TaskRows

log = logging.getLogger("oncue.view")
RecordKeys = frozenset[tuple[str, int, int]]  # topic, partition, offset

# Errors that the record itself causes. All others (full disk, damaged file) are raised.
POISON = (
    *(OncueError, ValueError, TypeError, LookupError, OverflowError, RecursionError),
    *(sqlite3.DataError, sqlite3.IntegrityError),
)


class Applied(msgspec.Struct):
    """Outcome of applying a group of batches."""

    closed: list[ClosedTask] = msgspec.field(default_factory=list)  # in order; without `reported`
    dead: list[DeadLetter] = msgspec.field(default_factory=list)  # to be appended to oncue.dead


class Projector:
    """Writes the view: one instance, in the writer thread."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        letter_rows.add_missing(db)
        self._tasks = TaskRows(db, CallInterner(db))
        self._careful = False
        self.positions: dict[Partition, int] = {
            (topic, partition): offset for topic, partition, offset in db.execute("SELECT * FROM position")
        }
        # Dead letters that the previous process could not append before it ended.
        letters = db.execute("SELECT letter FROM unburied").fetchall()
        self._pending_letters = [decode(DeadLetter, letter) for (letter,) in letters]

    # ------------------------------------------------------------ groups

    def apply(self, batches: Sequence[RecordBatch], reported: RecordKeys = frozenset()) -> Applied:
        """Apply a group; omit the closed tasks of `reported` records from the result.

        Raises sqlite3.Error if the database fails; then nothing of the group is applied.
        """
        applied = self._group([b for b in map(self._unapplied, batches) if b is not None], reported)
        if self._pending_letters:
            applied.dead[:0], self._pending_letters = self._pending_letters, []
        return applied

    def replay_skipped(self) -> Applied:
        """Apply records that an older version skipped and this one knows."""
        rows = self._db.execute("SELECT * FROM skipped WHERE kinds < ? ORDER BY topic, partition, offset", (KINDS,))
        batches = [RecordBatch(t, p, (o,), (decode(Record, raw),)) for t, p, o, _, _, raw in rows.fetchall()]
        if not batches:
            return Applied()
        self._db.execute("BEGIN")
        try:
            self._db.execute("DELETE FROM skipped WHERE kinds < ?", (KINDS,))
            applied = self._records(batches, frozenset(), careful=True)
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return applied

    def _unapplied(self, batch: RecordBatch) -> RecordBatch | None:
        """Return the batch without records applied before; None if nothing is left.

        A batch without records may still advance its partition's position.
        """
        known = self.positions.get((batch.topic, batch.partition), 0)
        if batch.offsets and batch.offsets[0] >= known:
            return batch
        rest = [(o, r) for o, r in zip(batch.offsets, batch.records, strict=True) if o >= known]
        if not rest and batch.end <= known:
            return None
        return RecordBatch(batch.topic, batch.partition, [o for o, _ in rest], [r for _, r in rest], batch.end)

    def _group(self, batches: list[RecordBatch], reported: RecordKeys) -> Applied:
        if not batches:
            return Applied()
        if not self._careful:
            try:
                return self._transaction(batches, reported, careful=False)
            except (NeedsFold, *POISON):
                pass
        applied = self._transaction(batches, reported, careful=True)
        # While results precede their tasks (the view is rebuilt), the fast path would fail again.
        self._careful = self._tasks.stubs > 0
        return applied

    def _transaction(self, batches: list[RecordBatch], reported: RecordKeys, careful: bool) -> Applied:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            applied = self._records(batches, reported, careful)
            reached: dict[Partition, int] = {}
            for b in batches:
                where = (b.topic, b.partition)
                reached[where] = max(reached.get(where, 0), b.next_offset)
            run(self._db, "INSERT OR REPLACE INTO position {values}", [(*where, to) for where, to in reached.items()])
            run(self._db, "INSERT OR REPLACE INTO last_record {values}", last_records(batches))
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.positions.update(reached)
        return applied

    def _roll_back(self) -> None:
        self._tasks.reset()
        if self._db.in_transaction:  # some errors make SQLite roll back by itself
            self._db.execute("ROLLBACK")

    def reset_caches(self) -> None:
        """Drop cached ids of calls, after calls were deleted."""
        self._tasks.reset()

    def skip_to(self, positions: Mapping[Partition, int]) -> None:
        """Advance positions to offsets where the log now begins."""
        ahead = {where: to for where, to in positions.items() if to > self.positions.get(where, 0)}
        run(self._db, "INSERT OR REPLACE INTO position {values}", [(*where, to) for where, to in ahead.items()])
        self.positions.update(ahead)

    # ------------------------------------------------------------ records

    def _records(self, batches: Sequence[RecordBatch], reported: RecordKeys, careful: bool) -> Applied:
        applied = Applied()
        self._tasks.stubs = 0
        ordered = sorted(batches, key=lambda b: not b.topic.startswith(TASKS_PREFIX))
        for topic, partition, offset, record in _each(ordered):
            if careful:
                closed = self._careful_record(topic, partition, offset, record, applied)
            else:
                closed = self._fast_record(topic, partition, offset, record, applied)
            if closed and not (reported and (topic, partition, offset) in reported):
                applied.closed += closed
        return applied

    def _fast_record(
        self, topic: str, partition: int, offset: int, record: Record, applied: Applied
    ) -> list[ClosedTask]:
        try:
            return self._record(topic, partition, offset, record, False)
        except OncueError as e:  # undecodable: nothing was written yet
            self._to_dead_letters(topic, partition, offset, record, e, applied)
            return []

    def _careful_record(
        self, topic: str, partition: int, offset: int, record: Record, applied: Applied
    ) -> list[ClosedTask]:
        self._db.execute("SAVEPOINT record")
        try:
            closed = self._record(topic, partition, offset, record, True)
        except POISON as e:
            self._db.execute("ROLLBACK TO record")
            self._tasks.reset()
            self._to_dead_letters(topic, partition, offset, record, e, applied)
            closed = []
        self._db.execute("RELEASE record")
        return closed

    def _record(self, topic: str, partition: int, offset: int, record: Record, careful: bool) -> list[ClosedTask]:
        """Apply one record; return the tasks that it closed."""
        if topic == EVENTS:
            record_rows.store_event(self._db, record, partition, offset)
            return []
        if topic == REGISTRY and not record.value:
            registry_rows.remove(self._db, record.key)
            return []
        try:
            message = decode_record(topic, record.value)
        except UnknownKind as e:
            self._skip(topic, partition, offset, record, str(e))
            return []
        if isinstance(message, ResultFrame):
            if message.epoch and record_rows.is_fenced(self._db, message):
                return []
            return self._tasks.end(message, careful)
        if isinstance(message, TaskFrame):
            self._tasks.accept(message, offset)
        elif topic == REGISTRY:
            registry_rows.store(self._db, message, record.key, record_rows.pack_position(partition, offset))
        else:
            self._other(message, partition, offset, record)
        return []

    def _other(self, message: object, partition: int, offset: int, record: Record) -> None:
        match message:
            case Cancel():
                self._tasks.cancel(message)
            case Claim():
                record_rows.store_claim(self._db, message, partition, offset)
            case Fence():
                record_rows.store_fence(self._db, message)
            case Started():
                self._tasks.mark_started(message)
            case Usage():
                record_rows.store_usage(self._db, message)
            case Output():
                record_rows.append_output(self._db, message, record.time_ms)
            case DeadLetter():
                record_rows.store_dead_letter(self._db, message, partition, offset)
                letter_rows.store(self._db, message, record_rows.pack_position(partition, offset))
            case Resolution():
                record_rows.store_resolution(self._db, message, partition)

    def _skip(self, topic: str, partition: int, offset: int, record: Record, kind: str) -> None:
        log.warning(
            "%s:%d:%d is a %s, which this version does not know; kept for a newer one", topic, partition, offset, kind
        )
        self._db.execute(
            "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?, ?)",
            (topic, partition, offset, kind, KINDS, encode(record)),
        )

    def _to_dead_letters(
        self, topic: str, partition: int, offset: int, record: Record, e: Exception, applied: Applied
    ) -> None:
        """Add a dead letter for a record that cannot be applied.

        It stays pending (table `unburied`) until it is read back from oncue.dead. The rule engine
        writes those of unreadable events, and an unreadable dead letter must not cause another.
        """
        log.warning("%s:%d:%d cannot be read: %s", topic, partition, offset, e)
        if topic in (EVENTS, DEAD):
            return
        reason = e.message if isinstance(e, OncueError) else f"{type(e).__name__}: {e}"
        letter = DeadLetter(
            1,
            "decode",
            reason,
            record.time_ms * 1000 or now_us(),
            topic,
            partition,
            offset,
            record=record.value[:EVENT_BYTES],
            headers=headers_within_limit(record.headers),
            remedy="check the program that wrote this record: it is not in oncue's format",
        )
        self._db.execute(
            "INSERT OR REPLACE INTO unburied VALUES (?, ?, ?, ?)", (topic, partition, offset, encode(letter))
        )
        applied.dead.append(letter)


def _each(batches: Sequence[RecordBatch]) -> Iterator[tuple[str, int, int, Record]]:
    for b in batches:
        for offset, record in zip(b.offsets, b.records, strict=True):
            yield b.topic, b.partition, offset, record
