"""The durable log: topics of records in partitions. A backend is picked by a URL (`open_log`) and imported lazily.

    append ──► (ordered in its partition) ──► durable ──► future resolves ──► readers and watchers
    read(topics, group or start) ──► Batch, Batch ... in order in a partition
    commit(group, batches, appends): what the batches caused and their offsets become durable together

All methods are called from the event loop that opened the log.
"""

from __future__ import annotations

import asyncio
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from oncue.protocol.codec import prepare

Partition = tuple[str, int]  # (topic, partition)
Start = Literal["committed", "earliest", "latest"] | Mapping[Partition, int]


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    value: bytes
    key: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()  # CloudEvents binary mode, content-type ...
    time_ms: int = 0  # 0 at append: the log stamps it


class RecordBatch(msgspec.Struct, frozen=True):
    """Consecutive records of one partition; compaction, truncation and the marks of transactions leave gaps between
    offsets. Where such a gap ends a partition, a batch may come without records: only its `end` tells something."""

    topic: str
    partition: int
    offsets: Sequence[int]
    records: Sequence[Record]
    end: int = 0  # the next offset, where it is further than behind the last record; 0: it is there

    @property
    def next_offset(self) -> int:
        return self.end or self.offsets[-1] + 1


def partition_of(key: bytes, count: int) -> int:
    """Each record's partition is crc32(key) modulo the count; without a key it is 0."""
    return zlib.crc32(key) % count if key else 0


class Append(msgspec.Struct, frozen=True):
    topic: str
    records: Sequence[Record]
    partition: int | None = None  # None: by each record's key


class Position(msgspec.Struct, frozen=True):
    """Where records went: offsets first ... first + count - 1. Another's record or mark may come between two appends."""

    topic: str
    partition: int
    first: int
    count: int


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a topic. With neither retention nor compaction it keeps everything until `truncate`."""

    partitions: int = 1
    retention_ms: int = 0  # 0: not by age
    retention_bytes: int = 0  # a partition; 0: not by size
    compact: bool = False  # keep the newest record of each key; an empty value deletes the key


class Reader(ABC):
    """Batches of some topics. Each reader goes at its own pace: a slow one harms no other."""

    async def __aiter__(self) -> AsyncIterator[RecordBatch]:
        while True:
            for batch in await self.next():
                yield batch

    @abstractmethod
    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        """Waits for at least one batch, and gives what is there up to max_batches: for consumers that work in groups.

        A record whose frame the log itself cannot decode (a damaged row) is appended to `oncue.dead` and skipped.
        A reader of a group gives what one `commit` can take: on Kafka, batches of one partition. Raises LogError when the
        log is closed, or what keeps it from reading."""

    @abstractmethod
    async def seek(self, partition: Partition, offset: int) -> None:
        """Go on from this offset: rewinding and skipping."""

    @abstractmethod
    async def close(self) -> None: ...


class Assignment(ABC):
    """A member of a group that divides the partitions of a topic among its members."""

    @abstractmethod
    async def next(self) -> frozenset[int]:
        """The partitions that are this member's: at first once the group has decided, then each time it has decided anew,
        also when they are the same. A member that was silent for too long has lost them meanwhile, and may not know it.
        Raises LogError when the log or the share is closed, or what keeps it from taking part; ask again then."""

    @abstractmethod
    def sure(self) -> bool:
        """Whether nobody else can have been given what `next` gave last: the group has heard of this member recently enough,
        and is not deciding anew."""

    @abstractmethod
    async def until_sure(self) -> bool:
        """Wait until it is; False when the group has decided anew before, or is about to, and `next` is to be asked."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the group: others get the partitions at once."""


class Log(ABC):
    """See the module. Errors: LogError; DiskFull when the disk is full (the log goes on when there is space again)."""

    #: Appends become durable in the order in which they were handed over. Only then may a watcher be `early`.
    fifo: bool = False

    #: Whether other processes append to it at the same time.
    shared: bool = False

    #: Which log this is: offsets of one mean nothing in another.
    identity: str = ""

    @abstractmethod
    async def ensure(self, topics: Mapping[str, Topic]) -> None:
        """Create what is missing and put settings right. Idempotent."""

    @abstractmethod
    def append(
        self, topic: str, records: Sequence[Record], partition: int | None = None
    ) -> asyncio.Future[list[Position]]:
        """Hand over records; they are ordered from this call on. The future resolves when they are durable (one
        Position a partition, in the order of first use), or raises. Not awaiting is fine; errors are then logged."""

    @abstractmethod
    def read(self, topics: Iterable[str], *, group: str | None = None, start: Start = "committed") -> Reader:
        """A reader of all partitions of the topics. With a group and "committed" it goes on behind what the group
        committed (at first: earliest). Topics are made if missing. A mapping starts each partition at that offset
        (partitions that it does not name: earliest). An offset that is truncated already moves to the first kept."""

    @abstractmethod
    async def commit(
        self, group: str, batches: Sequence[RecordBatch], appends: Sequence[Append] = (), *, repeatable: bool = False
    ) -> list[Position]:
        """Atomically: the group has done these batches (of one call of `next`), and these records are appended. With neither
        it waits until all that was handed over before is durable. Raises NotOwner when another process has the partition
        by now: it does these batches again.

        `repeatable`: appending the same again does no harm (their ids repeat, say). Where atomicity is dear, the records are
        durable first then, and the group's place follows soon: after a crash in between, the batches come again."""

    @abstractmethod
    def watch(
        self, prefix: str, callback: Callable[[str, Sequence[Record]], None], *, early: bool = False
    ) -> Callable[[], None]:
        """Call back, on the loop, for each append of this process from now on to a topic whose name starts with the prefix;
        early: as soon as it is ordered, before it is durable (only where `fifo`). Returns the function that ends the watch."""

    def trouble(self) -> str:
        """Why what is handed over waits, or nothing can be read, if it does so for longer than usual; "": it does not."""
        return ""

    def told(self, record: Record) -> bool:
        """Whether this record, as a reader brings it, was appended by this process: then its watchers were told."""
        return not self.shared

    @abstractmethod
    def share(self, topic: str, group: str) -> Assignment:
        """Take part in dividing this topic's partitions; the topic is there already. Where nobody else appends to the log,
        all of them are this member's at once, for ever."""

    @abstractmethod
    async def end_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        """The offset behind the last durable record (or mark): a reader that has come so far has all."""

    @abstractmethod
    async def begin_offsets(self, topics: Iterable[str]) -> dict[Partition, int]: ...

    @abstractmethod
    async def committed(self, group: str) -> dict[Partition, int]: ...

    @abstractmethod
    async def lag(self, group: str, topics: Iterable[str]) -> dict[Partition, int]:
        """Records between what the group committed and the end."""

    @abstractmethod
    async def truncate(self, topic: str, partition: int, before: int) -> None:
        """Forget records below this offset. Where whole stored batches go at once, a few older ones may stay."""

    @abstractmethod
    async def topics(self) -> dict[str, Topic]: ...

    @abstractmethod
    async def housekeep(self, now_ms: int | None = None) -> dict[str, int]:
        """Retention by age and size, and compaction; in bites that do not hold up appends. Returns bytes freed a topic.
        A log that a service keeps (Kafka) does that by itself, by its topics' settings: then this does nothing."""

    @abstractmethod
    async def close(self) -> None: ...


prepare(globals())
