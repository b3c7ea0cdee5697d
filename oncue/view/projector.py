"""Log batches -> rows. Runs in the view's one writer thread.

    group of batches ──► BEGIN ── each record to its rows ── positions ── COMMIT ──► Applied

A group is one transaction, with the positions behind it: a process that dies here does the group again, or has it done.
Records that were applied before are left out. Topics commute, so frames of tasks go first: their ends then find them.

Quick first: no savepoints, whole frames. Where that is not right (Mixed), or a record is poison, the group is rolled back and
done carefully: each record in a savepoint, mixed ends folded one by one; what cannot be applied becomes a dead letter.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from oncue.errors import OncueError
from oncue.ids import now_us
from oncue.log import Partition, Record, RecordBatch
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import (
    EVENT_BYTES,
    Cancel,
    Claim,
    DeadLetter,
    Fence,
    Output,
    Resolution,
    ResultFrame,
    Started,
    TaskFrame,
    Usage,
    headers_within_limit,
)
from oncue.protocol.topics import DEAD, EVENTS, REGISTRY, TASKS_PREFIX
from oncue.view import record_rows, registry_rows
from oncue.view.bulk_sql import run
from oncue.view.decoding import UnknownKind, read
from oncue.view.interning import Calls
from oncue.view.schema import KINDS
from oncue.view.tasks import Closing, Mixed, TaskRows

log = logging.getLogger("oncue.view")
Told = frozenset[tuple[str, int, int]]

# What a record can cause by itself. Anything else (a full disk, a damaged file) is not the record's fault and is raised.
POISON = (OncueError, ValueError, TypeError, LookupError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError)


class Applied(msgspec.Struct):
    """What a group of batches did."""

    closed: list[Closing] = msgspec.field(default_factory=list)  # in order, without those of the records in `told`
    dead: list[DeadLetter] = msgspec.field(default_factory=list)  # to be appended to oncue.dead by the caller


class Projector:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._tasks = TaskRows(db, Calls(db))
        self._careful = False
        self.positions: dict[Partition, int] = {
            (topic, partition): offset for topic, partition, offset in db.execute("SELECT * FROM position")
        }
        letters = db.execute("SELECT letter FROM unburied").fetchall()
        self._unburied = [decode(DeadLetter, letter) for (letter,) in letters]

    # ------------------------------------------------------------ groups

    def apply(self, batches: Sequence[RecordBatch], told: Told = frozenset()) -> Applied:
        """Raises sqlite3.Error when the database cannot; then nothing of the group is done."""
        applied = self._group([b for b in map(self._fresh, batches) if b is not None], told)
        if self._unburied:  # of the process before this one, which died before it could append them
            applied.dead[:0], self._unburied = self._unburied, []
        return applied

    def replay_skipped(self) -> Applied:
        """Apply the records that an older version had to skip and this one knows."""
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

    def _fresh(self, batch: RecordBatch) -> RecordBatch | None:
        """Without what was applied before. A batch without records may still tell that its partition is further."""
        known = self.positions.get((batch.topic, batch.partition), 0)
        if batch.offsets and batch.offsets[0] >= known:
            return batch
        rest = [(o, r) for o, r in zip(batch.offsets, batch.records, strict=True) if o >= known]
        if not rest and batch.end <= known:
            return None
        return RecordBatch(batch.topic, batch.partition, [o for o, _ in rest], [r for _, r in rest], batch.end)

    def _group(self, batches: list[RecordBatch], told: Told) -> Applied:
        if not batches:
            return Applied()
        if not self._careful:
            try:
                return self._transaction(batches, told, careful=False)
            except (Mixed, *POISON):
                pass
        applied = self._transaction(batches, told, careful=True)
        # While ends are ahead of their tasks (a view that is being rebuilt), the quick way would be tried in vain.
        self._careful = self._tasks.stubs > 0
        return applied

    def _transaction(self, batches: list[RecordBatch], told: Told, careful: bool) -> Applied:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            applied = self._records(batches, told, careful)
            reached: dict[Partition, int] = {}
            for b in batches:
                where = (b.topic, b.partition)
                reached[where] = max(reached.get(where, 0), b.next_offset)
            run(self._db, "INSERT OR REPLACE INTO position {values}", [(*where, to) for where, to in reached.items()])
            self._db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.positions.update(reached)
        return applied

    def _roll_back(self) -> None:
        self._tasks.forget()
        if self._db.in_transaction:  # SQLite ends it by itself where it must
            self._db.execute("ROLLBACK")

    def forget_calls(self) -> None:
        """After calls were deleted: what is remembered of them may not be stored any more."""
        self._tasks.forget()

    def skip_to(self, positions: Mapping[Partition, int]) -> None:
        """Records below these offsets are not in the log any more."""
        ahead = {where: to for where, to in positions.items() if to > self.positions.get(where, 0)}
        run(self._db, "INSERT OR REPLACE INTO position {values}", [(*where, to) for where, to in ahead.items()])
        self.positions.update(ahead)

    # ------------------------------------------------------------ records

    def _records(self, batches: Sequence[RecordBatch], told: Told, careful: bool) -> Applied:
        applied = Applied()
        self._tasks.stubs = 0
        ordered = sorted(batches, key=lambda b: not b.topic.startswith(TASKS_PREFIX))
        for topic, partition, offset, record in _each(ordered):
            if careful:
                closed = self._careful_record(topic, partition, offset, record, applied)
            else:
                closed = self._quick_record(topic, partition, offset, record, applied)
            if closed and not (told and (topic, partition, offset) in told):
                applied.closed += closed
        return applied

    def _quick_record(self, topic: str, partition: int, offset: int, record: Record, applied: Applied) -> list[Closing]:
        try:
            return self._record(topic, partition, offset, record, False)
        except OncueError as e:  # it could not be decoded: nothing was written yet
            self._bury(topic, partition, offset, record, e, applied)
            return []

    def _careful_record(
        self, topic: str, partition: int, offset: int, record: Record, applied: Applied
    ) -> list[Closing]:
        self._db.execute("SAVEPOINT record")
        try:
            closed = self._record(topic, partition, offset, record, True)
        except POISON as e:
            self._db.execute("ROLLBACK TO record")
            self._tasks.forget()
            self._bury(topic, partition, offset, record, e, applied)
            closed = []
        self._db.execute("RELEASE record")
        return closed

    def _record(self, topic: str, partition: int, offset: int, record: Record, careful: bool) -> list[Closing]:
        """Apply one record; the tasks that it closed."""
        if topic == EVENTS:
            record_rows.event(self._db, record, partition, offset)
            return []
        if topic == REGISTRY and not record.value:
            registry_rows.remove(self._db, record.key)
            return []
        try:
            message = read(topic, record.value)
        except UnknownKind as e:
            self._skip(topic, partition, offset, record, str(e))
            return []
        if isinstance(message, ResultFrame):
            if message.epoch and record_rows.fenced(self._db, message):
                return []
            return self._tasks.end(message, careful)
        if isinstance(message, TaskFrame):
            self._tasks.accept(message, offset)
        elif topic == REGISTRY:
            registry_rows.put(self._db, message, record.key, record_rows.place(partition, offset))
        else:
            self._other(message, partition, offset, record)
        return []

    def _other(self, message: object, partition: int, offset: int, record: Record) -> None:
        if isinstance(message, Cancel):
            self._tasks.cancel(message)
        elif isinstance(message, Claim):
            record_rows.claim(self._db, message, partition, offset)
        elif isinstance(message, Fence):
            record_rows.fence(self._db, message)
        elif isinstance(message, Started):
            self._tasks.started(message)
        elif isinstance(message, Usage):
            record_rows.usage(self._db, message)
        elif isinstance(message, Output):
            record_rows.output(self._db, message, record.time_ms)
        elif isinstance(message, DeadLetter):
            record_rows.dead(self._db, message, partition, offset)
        elif isinstance(message, Resolution):
            record_rows.settled(self._db, message, partition)

    def _skip(self, topic: str, partition: int, offset: int, record: Record, kind: str) -> None:
        log.warning(
            "%s:%d:%d is a %s, which this version does not know; kept for a newer one", topic, partition, offset, kind
        )
        self._db.execute(
            "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?, ?)",
            (topic, partition, offset, kind, KINDS, encode(record)),
        )

    def _bury(self, topic: str, partition: int, offset: int, record: Record, e: Exception, applied: Applied) -> None:
        """A letter for a record that cannot be applied, kept until it is seen in oncue.dead. Events that cannot be read are
        buried by the rules' engine, which reads each; and a letter that cannot be read must not cause another."""
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
            remedy="look at what wrote this record: it is not in the form that oncue writes",
        )
        self._db.execute(
            "INSERT OR REPLACE INTO unburied VALUES (?, ?, ?, ?)", (topic, partition, offset, encode(letter))
        )
        applied.dead.append(letter)


def _each(batches: Sequence[RecordBatch]) -> Iterator[tuple[str, int, int, Record]]:
    for b in batches:
        for offset, record in zip(b.offsets, b.records, strict=True):
            yield b.topic, b.partition, offset, record
