"""What the log keeps in memory of its topics, so that offsets are answered without a look at the disk.

Two threads share these: a field belongs to the one that its comment names, the other only reads it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from oncue.log.base import Partition, Record, Topic, partition_of

if TYPE_CHECKING:
    from oncue.log.sqlite.reader import Cursor

Callback = Callable[[str, Sequence[Record]], None]


class Part:
    """One partition of a topic."""

    __slots__ = (
        "begin",
        "compacted",
        "cursors",
        "end",
        "grown_bytes",
        "live",
        "next",
        "number",
        "old_bytes",
        "opened",
        "tombstone_ms",
        "topic",
    )

    def __init__(self, topic: TopicState, number: int, begin: int = 0, end: int = 0) -> None:
        self.topic = topic
        self.number = number
        self.next = end  # writer: the next record's offset
        self.end = end  # loop: behind the last durable record that readers were told of
        self.begin = begin  # loop: the first kept
        self.cursors: list[Cursor] = []  # loop: who reads it
        # For retention by size. writer: bytes of the rows since opening, and of those before (-1: not counted yet).
        self.opened = end
        self.grown_bytes = 0
        self.old_bytes = -1 if end > begin else 0
        # loop: how far compaction has come, how many records it left, and when the first kept tombstone may go.
        self.compacted = 0
        self.live = 0
        self.tombstone_ms = 0

    @property
    def key(self) -> Partition:
        return (self.topic.name, self.number)


class TopicState:
    """One topic, its partitions, and who watches it."""

    __slots__ = ("early", "id", "late", "name", "parts", "settings", "stored")

    def __init__(self, id: int, name: str, settings: Topic, stored: bool) -> None:
        self.id = id
        self.name = name
        self.settings = settings
        self.stored = stored  # writer: it has its row in the database
        self.parts = [Part(self, n) for n in range(settings.partitions)]
        self.early: tuple[Callback, ...] = ()
        self.late: tuple[Callback, ...] = ()

    def spread(self, records: Sequence[Record]) -> Iterator[tuple[Part, Sequence[Record]]]:
        """The records by their keys' partitions, in order."""
        found: dict[int, list[Record]] = {}
        count = len(self.parts)
        for record in records:
            number = partition_of(record.key, count)
            found.setdefault(number, []).append(record)
        for number, chosen in found.items():
            yield self.parts[number], chosen


class Loaded(msgspec.Struct):
    """What the database knows at the start."""

    topics: dict[str, TopicState]
    groups: dict[str, dict[Partition, int]]


PARTS = """
SELECT topic, partition, next,
 (SELECT b.first FROM batches b WHERE b.topic = p.topic AND b.partition = p.partition ORDER BY b.first LIMIT 1),
 (SELECT b.first + b.count FROM batches b
   WHERE b.topic = p.topic AND b.partition = p.partition ORDER BY b.first DESC LIMIT 1)
FROM partitions p ORDER BY topic, partition"""


def load(db: sqlite3.Connection) -> Loaded:
    """Two seeks a partition, whatever the size of the log."""
    topics: dict[int, TopicState] = {}
    for id, name, settings in db.execute("SELECT id, name, settings FROM topics"):
        topics[id] = TopicState(id, name, msgspec.msgpack.decode(settings, type=Topic), stored=True)
    for id, number, floor, first, after in db.execute(PARTS):
        # A row that compaction has thinned ends higher than its count tells: then the floor was written with it.
        end = max(floor, after or 0)
        topics[id].parts[number] = Part(topics[id], number, end if first is None else first, end)
    groups: dict[str, dict[Partition, int]] = {}
    for group, id, number, place in db.execute("SELECT grp, topic, partition, next FROM offsets"):
        groups.setdefault(group, {})[(topics[id].name, number)] = place
    return Loaded({topic.name: topic for topic in topics.values()}, groups)
