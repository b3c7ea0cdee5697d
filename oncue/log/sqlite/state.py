"""Topics and partitions of the embedded log, as kept in memory.

Queries for offsets need no disk access. Two threads share these objects: the event loop and the
writer. Only the thread named in a field's comment changes it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from oncue.log.base import Partition, Record, RecordBatch, Topic, partition_of
from oncue.log.sqlite.database import read_identity
from oncue.log.sqlite.rows import has_checksum, is_accounted_for

Callback = Callable[[str, Sequence[Record]], None]


class Subscriber(Protocol):
    """Reader's end of one partition: gets each new batch."""

    def feed(self, batch: RecordBatch, nbytes: int) -> None: ...


class PartitionState:
    """One partition: its offsets, sizes and subscribers."""

    __slots__ = (
        "begin",
        "compacted",
        "end",
        "grown_bytes",
        "live",
        "next",
        "number",
        "old_bytes",
        "opened",
        "subscribers",
        "tombstone_ms",
        "topic",
    )

    def __init__(self, topic: TopicState, number: int, begin: int = 0, end: int = 0) -> None:
        self.topic = topic
        self.number = number
        self.next = end  # writer: the next record's offset
        self.end = end  # loop: offset after the last durable, published record
        self.begin = begin  # loop: the first kept offset
        self.subscribers: list[Subscriber] = []  # loop
        # For retention by size. writer: bytes of the rows written since opening, and of older ones
        # (-1: not counted yet).
        self.opened = end
        self.grown_bytes = 0
        self.old_bytes = -1 if end > begin else 0
        # loop: end of the last compaction, records it kept, and when the first tombstone expires.
        self.compacted = 0
        self.live = 0
        self.tombstone_ms = 0

    @property
    def key(self) -> Partition:
        return (self.topic.name, self.number)


class TopicState:
    """One topic: settings, partitions and watchers."""

    __slots__ = ("early", "id", "late", "name", "parts", "settings", "stored")

    def __init__(self, id: int, name: str, settings: Topic, stored: bool) -> None:
        self.id = id
        self.name = name
        self.settings = settings
        self.stored = stored  # writer: has its row in the database
        self.parts = [PartitionState(self, n) for n in range(settings.partitions)]
        self.early: tuple[Callback, ...] = ()
        self.late: tuple[Callback, ...] = ()

    def spread(self, records: Sequence[Record]) -> Iterator[tuple[PartitionState, Sequence[Record]]]:
        """Yield the records of each partition, by their keys, in order."""
        found: dict[int, list[Record]] = {}
        count = len(self.parts)
        for record in records:
            number = partition_of(record.key, count)
            found.setdefault(number, []).append(record)
        for number, chosen in found.items():
            yield self.parts[number], chosen


class StoredState(msgspec.Struct):
    """Identity, topics and group offsets that the database holds at start."""

    identity: str
    topics: dict[str, TopicState]
    groups: dict[str, dict[Partition, int]]


BOUNDS = """
SELECT (SELECT first FROM batches WHERE topic = ?1 AND partition = ?2 ORDER BY first LIMIT 1),
 (SELECT first + count FROM batches WHERE topic = ?1 AND partition = ?2 ORDER BY first DESC LIMIT 1)"""
LAST = "SELECT * FROM batches WHERE topic = ? AND partition = ? ORDER BY first DESC LIMIT 2"


class DamagedState(Exception):
    """The database is readable, but rows are not what was written."""


def load(db: sqlite3.Connection) -> StoredState:
    """Read the state at start; two seeks per partition, whatever the log's size.

    Raises DamagedState.
    """
    topics: dict[int, TopicState] = {}
    for *row, crc in db.execute("SELECT id, name, settings, crc FROM topics"):
        _check("topics", row, crc)
        topics[row[0]] = TopicState(row[0], row[1], msgspec.msgpack.decode(row[2], type=Topic), stored=True)
    bounds = {row[:2]: row for row in db.execute("SELECT topic, partition, next, begin, crc FROM partitions")}
    for topic in topics.values():
        for number in range(len(topic.parts)):
            stored = bounds.pop((topic.id, number), None)
            if stored is None:
                raise DamagedState(f"the partition {topic.name}/{number} has no row")
            topic.parts[number] = _partition(db, topic, number, stored)
    if bounds:
        raise DamagedState(f"partitions without a topic: {list(bounds)[:3]}")
    groups: dict[str, dict[Partition, int]] = {}
    for *row, crc in db.execute("SELECT grp, topic, partition, next, crc FROM offsets"):
        _check("offsets", row, crc)
        group, id, number, offset = row
        groups.setdefault(group, {})[(topics[id].name, number)] = offset
    return StoredState(read_identity(db), {topic.name: topic for topic in topics.values()}, groups)


def _check(table: str, row: Sequence[object], crc: int | None) -> None:
    """Raise DamagedState if the row of a small table does not have its checksum."""
    if not has_checksum((*row, crc)):
        raise DamagedState(f"a row of the table {table} does not have its checksum: {row!r:.200}")


def _partition(db: sqlite3.Connection, topic: TopicState, number: int, stored: tuple[int, ...]) -> PartitionState:
    *row, crc = stored
    _check("partitions", row, crc)
    floor, begin = row[2:]
    first, after = db.execute(BOUNDS, (topic.id, number)).fetchone()
    if after is not None and after > floor:
        _check_last(db, topic, number)
    # A compacted row ends later than first + count. Compaction stored the next offset, too.
    end = max(floor, after or 0)
    if topic.settings.compact or first is None:
        begin = end if first is None else first
    return PartitionState(topic, number, begin, end)


def _check_last(db: sqlite3.Connection, topic: TopicState, number: int) -> None:
    """Raise DamagedState if the last row may have another offset than before."""
    last, *before = db.execute(LAST, (topic.id, number)).fetchall()
    if not is_accounted_for(last) and before and before[0][2] + before[0][3] != last[2]:
        raise DamagedState(f"the last stored batch of {topic.name}/{number} is damaged")
