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


PARTS = """
SELECT topic, partition, next,
 (SELECT b.first FROM batches b
   WHERE b.topic = p.topic AND b.partition = p.partition ORDER BY b.first LIMIT 1),
 (SELECT b.first + b.count FROM batches b
   WHERE b.topic = p.topic AND b.partition = p.partition ORDER BY b.first DESC LIMIT 1)
FROM partitions p ORDER BY topic, partition"""


def load(db: sqlite3.Connection) -> StoredState:
    """Read the state at start; two seeks per partition, whatever the log's size."""
    topics: dict[int, TopicState] = {}
    for id, name, settings in db.execute("SELECT id, name, settings FROM topics"):
        topics[id] = TopicState(id, name, msgspec.msgpack.decode(settings, type=Topic), stored=True)
    for id, number, floor, first, after in db.execute(PARTS):
        # A compacted row ends later than first + count. Compaction stored the next offset, too.
        end = max(floor, after or 0)
        topics[id].parts[number] = PartitionState(topics[id], number, end if first is None else first, end)
    groups: dict[str, dict[Partition, int]] = {}
    for group, id, number, offset in db.execute("SELECT grp, topic, partition, next FROM offsets"):
        groups.setdefault(group, {})[(topics[id].name, number)] = offset
    return StoredState(read_identity(db), {topic.name: topic for topic in topics.values()}, groups)
