"""Interface of the durable log: topics of records in ordered partitions.

    append ──► ordered in its partition ──► durable ──► future resolves ──► readers and watchers
    read(topics, group or start) ──► RecordBatch, RecordBatch ... in order within a partition
    commit(group, batches, appends): offsets and resulting records become durable atomically

The terms are Kafka's. `oncue.log.open_log` picks the backend by URL: SQLite (embedded, one
process) or Kafka. `tests/contract` runs the same tests over both.

Call all methods on the event loop that opened the log.
"""

from __future__ import annotations

import asyncio
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from oncue.protocol.codec import build_decoders

Partition = tuple[str, int]  # (topic, partition)
# What to do about a log that is `lost`.
OPEN_AGAIN = "start servers and stream workers again (oncue down, oncue up): they follow what the log has now"
Start = Literal["committed", "earliest", "latest"] | Mapping[Partition, int]


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One record: value, key, headers and timestamp."""

    value: bytes
    key: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()  # CloudEvents binary mode, content-type ...
    time_ms: int = 0  # since 1970; 0 in an append: the log sets it


class RecordBatch(msgspec.Struct, frozen=True):
    """Consecutive records of one partition.

    Offsets have gaps where compaction, truncation or transaction markers took some. If a partition
    ends with such a gap, a batch may have no records: it only moves the reader's position to `end`.
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    records: Sequence[Record]
    end: int = 0  # next offset, if there is a gap before it; 0: it follows the last record

    @property
    def next_offset(self) -> int:
        """Offset to commit, or to read from, after this batch."""
        return self.end or self.offsets[-1] + 1

    def split(self, at: int) -> tuple[RecordBatch, RecordBatch]:
        """Return the first `at` records and the others, of which there must be some."""
        first = RecordBatch(self.topic, self.partition, self.offsets[:at], self.records[:at])
        return first, RecordBatch(self.topic, self.partition, self.offsets[at:], self.records[at:], self.end)


def partition_of(key: bytes, count: int) -> int:
    """Return the partition of a key: crc32 modulo `count`; 0 without a key."""
    return zlib.crc32(key) % count if key else 0


class Append(msgspec.Struct, frozen=True):
    """Records that `Log.commit` appends to one topic."""

    topic: str
    records: Sequence[Record]
    partition: int | None = None  # None: by each record's key


class Position(msgspec.Struct, frozen=True):
    """Offsets that an append was given: first ... first + count - 1.

    Records of other processes and transaction markers may lie between the offsets of two appends.
    """

    topic: str
    partition: int
    first: int
    count: int


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a topic. By default it keeps everything until `truncate`."""

    partitions: int = 1
    retention_ms: int = 0  # 0: unlimited age
    retention_bytes: int = 0  # per partition; 0: unlimited size
    compact: bool = False  # keep the latest record of each key; an empty value deletes the key


class Reader(ABC):
    """Consumer of some topics. A slow reader does not delay other readers."""

    async def __aiter__(self) -> AsyncIterator[RecordBatch]:
        while True:
            for batch in await self.next():
                yield batch

    @abstractmethod
    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        """Wait for at least one batch; return up to `max_batches`.

        A reader of a group returns batches that one `Log.commit` accepts: on Kafka, batches of one
        partition. Stored data that cannot be decoded is skipped, and recorded once in `oncue.dead`.
        Raises LogError if the log or the reader is closed, or reading fails.
        """

    @abstractmethod
    async def seek(self, partition: Partition, offset: int) -> None:
        """Continue at this offset, which may lie before or after the current one."""

    @abstractmethod
    async def close(self) -> None: ...


class Assignment(ABC):
    """Partitions of a topic that a consumer group assigns to this process.

    It reads nothing: the group only decides which process works on which partition.
    """

    @abstractmethod
    async def next(self) -> frozenset[int]:
        """Wait for the next assignment; return all partitions of this member.

        The first call waits for the group's first assignment; each later call waits for another
        one, which may have the same partitions. A member that was silent for longer than its
        session has lost its partitions, perhaps without knowing it: see `is_exclusive`.
        Raises LogError if the log or the assignment is closed (final), or the group cannot be
        reached: then call again.
        """

    @abstractmethod
    def is_exclusive(self) -> bool:
        """True if no other member can own the last assigned partitions now.

        The group got this member's heartbeat within the session, and no rebalance is under way.
        """

    @abstractmethod
    async def wait_until_exclusive(self) -> bool:
        """Wait for `is_exclusive`; False if a rebalance came first: call `next`."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the group, so that other members get the partitions at once."""


class Log(ABC):
    """The durable log. See the module's docstring.

    Methods raise LogError; DiskFull if the disk is full (appends work again once there is space).
    """

    #: Appends become durable in call order over all partitions. `early` watchers require it.
    fifo: bool = False

    #: Other processes may append to it, too.
    shared: bool = False

    #: Identifies the log. Offsets stored for one log are invalid in another.
    identity: str = ""

    # ------------------------------------------------------------ topics

    @abstractmethod
    async def ensure(self, topics: Mapping[str, Topic]) -> None:
        """Create missing topics and update settings that differ. Idempotent."""

    @abstractmethod
    async def topics(self) -> dict[str, Topic]:
        """Return all topics with their current settings."""

    # ------------------------------------------------------------ writing

    @abstractmethod
    def append(
        self, topic: str, records: Sequence[Record], partition: int | None = None
    ) -> asyncio.Future[list[Position]]:
        """Enqueue records; the call fixes their order.

        The future resolves when they are durable, with one Position per partition in order of first
        use, or raises. It need not be awaited.
        """

    @abstractmethod
    async def commit(
        self, group: str, batches: Sequence[RecordBatch], appends: Sequence[Append] = (), *, repeatable: bool = False
    ) -> list[Position]:
        """Commit batches for a group and append records, atomically.

        `batches` come from one call of the group's `Reader.next`; their `next_offset`s become the
        group's offsets. Without batches and records, wait until all earlier appends are durable.
        Raises NotOwner if another process owns the partition now: that process repeats the batches.

        `repeatable`: it is harmless to append these records twice (their ids repeat, say). Where
        a transaction is slow, the log may then append first and commit the offset soon after. A
        crash in between delivers the batches again: at least once instead of exactly once.
        """

    @abstractmethod
    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete records below this offset.

        If only whole stored batches can be deleted, a few older records may stay.
        """

    @abstractmethod
    async def housekeep(
        self, now_ms: int | None = None, needed_from_ms: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Apply retention and compaction; return the freed bytes of each topic.

        `needed_from_ms`: topic -> time. Its records since then are not too old, whatever their age.
        Works in small steps that do not block appends. No-op where the service does it (Kafka).
        """

    # ------------------------------------------------------------ reading

    @abstractmethod
    def read(self, topics: Iterable[str], *, group: str | None = None, start: Start = "committed") -> Reader:
        """Return a reader of all partitions of these topics, created if missing.

        With a group and "committed" it starts at the group's committed offsets (if none: earliest).
        A mapping gives the offset of each partition (partitions not in it: earliest). An offset
        that is truncated already moves to the first one kept.
        """

    @abstractmethod
    def watch(
        self, prefix: str, callback: Callable[[str, Sequence[Record]], None], *, early: bool = False
    ) -> Callable[[], None]:
        """Call back with this process's appends to topics that start with `prefix`.

        The callback runs on the loop once records are durable; with `early` as soon as they are
        ordered (requires `fifo`). Returns the function that ends the watch.
        """

    def is_own(self, record: Record) -> bool:
        """True if this process appended the record, so that its watchers have had it.

        `record` comes from a reader; its topic is one that was watched when it was appended.
        """
        return not self.shared

    def trouble(self) -> str:
        """Return why appends or reads have stalled for unusually long, else ""."""
        return ""

    def lost(self) -> str:
        """Return why what readers have read is not in the log any more, else "".

        Then nothing may be accepted: the log must be opened again.
        """
        return ""

    def topic_id(self, topic: str) -> str:
        """Return an id that another topic of the same name, made later, does not have.

        "" if the log has none.
        """
        return ""

    # ------------------------------------------------------------ groups and offsets

    @abstractmethod
    def join_group(self, topic: str, group: str) -> Assignment:
        """Join a group that divides this topic's partitions; the topic must exist.

        In a log that is not `shared`, this process gets all partitions at once.
        """

    @abstractmethod
    async def committed(self, group: str) -> dict[Partition, int]:
        """Return the group's committed offsets."""

    @abstractmethod
    async def lag(self, group: str, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the number of records after the group's committed offsets."""

    @abstractmethod
    async def begin_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the first kept offset of each partition."""

    @abstractmethod
    async def end_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the offset after each partition's last durable record or marker."""

    @abstractmethod
    async def close(self) -> None:
        """Write what was enqueued, then close. Idempotent."""


build_decoders(globals())
