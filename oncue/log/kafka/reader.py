"""Readers of the log on Kafka: a queue that the fetcher fills."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import takewhile
from typing import Any

from oncue.errors import LogError, OncueError
from oncue.log.base import Partition, Reader, RecordBatch, Start
from oncue.log.kafka.decoding import Decoded
from oncue.log.kafka.fetcher import Fetcher, FetchState
from oncue.log.kafka.membership import Membership
from oncue.log.kafka.offsets import END, Offsets
from oncue.log.kafka.topics import KafkaTopic, Topics
from oncue.log.kafka.transactions import Transactions

logger = logging.getLogger(__name__)

QUEUE_BYTES = 16 * 1024 * 1024  # stored size; a fetch in progress may exceed it


class KafkaReader(Reader):
    """Reader of all partitions, or of those that its group assigns to it."""

    def __init__(
        self,
        names: Iterable[str],
        topics: Topics,
        fetcher: Fetcher,
        offsets: Offsets,
        forget: Callable[[KafkaReader], None],
    ) -> None:
        self.names = frozenset(names)
        self.group: str | None = None  # set if the group assigns its partitions
        self.done: dict[Partition, int] = {}  # offsets committed by the group, as known here
        self._topics, self._fetcher, self._offsets, self._forget = topics, fetcher, offsets, forget
        self._queue: deque[tuple[FetchState, RecordBatch, int]] = deque()
        self._bytes = 0
        self._was_full = False
        self._changed = asyncio.Event()
        self._error: OncueError | None = None
        self._closed = ""
        self._cursors: dict[Partition, FetchState] = {}
        self._membership: Membership | None = None
        self._start: Start = "committed"
        self._started = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ start

    def begin_at(self, start: Start, group: str | None) -> None:
        """Start reading all partitions."""
        self._start = start
        self._begin(lambda: self._place_all(start, group))

    def begin_in_group(self, group: str, membership: Membership) -> None:
        """Start reading the partitions that the group assigns."""
        self.group, self._membership = group, membership
        self._begin(lambda: self._join(membership))

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def begin() -> None:
            try:
                await work()
            except OncueError as e:
                self.fail(e)
            finally:
                self._started.set()

        self._starting = asyncio.create_task(begin())

    async def _join(self, membership: Membership) -> None:
        await asyncio.gather(*[self._topics.get_or_create(name) for name in self.names])
        await membership.join(sorted(self.names))

    async def _place_all(self, start: Start, group: str | None) -> None:
        found = await asyncio.gather(*[self._topics.get_or_create(name) for name in self.names])
        places = [(topic, number) for topic in found for number in range(topic.count)]
        at: dict[Partition, int] = {}
        if start == "latest":
            at = await self._offsets.at(places, END)
        elif start == "committed" and group is not None:
            at = await self._offsets.committed(group)
        elif not isinstance(start, str):
            at = dict(start)
        for topic, number in places:
            self._add(topic, number, at.get((topic.name, number), 0))

    def _add(self, topic: KafkaTopic, number: int, at: int) -> None:
        if not self._closed and (topic.name, number) not in self._cursors:
            cursor = self._cursors[topic.name, number] = FetchState(self, topic, number, at)
            self._fetcher.add(cursor)

    def partitions_added(self, topic: KafkaTopic, before: int) -> None:
        """Read new partitions of a topic; in a group, a rebalance assigns them."""
        if topic.name in self.names and self._membership is None and self._started.is_set():
            for number in range(before, topic.count):
                self._add(topic, number, 0)

    def add_partition(self, place: Partition, at: int) -> None:
        """Read a partition that the group assigned."""
        topic = self._topics.get(place[0])
        if topic is not None:
            self._add(topic, place[1], at)

    def owns(self, place: Partition, first: int) -> bool:
        """True if this process may commit a batch that begins at `first`."""
        return self._membership is not None and place in self._membership.owned and first >= self.done.get(place, 0)

    def advance(self, place: Partition, end: int) -> None:
        """Record that everything before offset `end` is processed durably."""
        if place in self.done:
            self.done[place] = end

    def commit_later(self, place: Partition, end: int) -> None:
        """Commit the offset to the group soon."""
        if self._membership is not None:
            self._membership.commit_later(place, end)

    async def flush_commits(self) -> None:
        """Wait until pending offsets are committed, or a rebalance starts."""
        if self._membership is not None:
            await self._membership.flush_commits()

    def drop_partition(self, place: Partition) -> None:
        """Stop reading a partition that another process owns; drop its batches."""
        self.done.pop(place, None)
        cursor = self._cursors.pop(place, None)
        if cursor is not None:
            self._fetcher.remove([cursor])
            self._drop(cursor)

    # ------------------------------------------------------------ Reader

    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        while True:
            if self._closed:
                raise LogError(self._closed)
            if self._queue:
                return self._pop(max_batches)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._changed.clear()
            await self._changed.wait()

    async def seek(self, partition: Partition, offset: int) -> None:
        await self._started.wait()
        cursor = self._cursors.get(partition)
        if cursor is None:
            raise LogError(f"this reader does not read {partition[0]}/{partition[1]}")
        self._drop(cursor)
        if partition in self.done:
            self.done[partition] = min(self.done[partition], offset)
        cursor.place(offset)
        self._fetcher.wake()

    async def close(self) -> None:
        self.end("the reader is closed")
        self._forget(self)
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._membership is not None:
            await self._membership.leave()

    def end(self, why: str) -> None:
        self._closed = self._closed or why
        self._fetcher.remove(self._cursors.values())
        self._cursors.clear()
        self._queue.clear()
        self._changed.set()

    # ------------------------------------------------------------ for the fetcher

    def is_full(self) -> bool:
        """True if the fetcher should not fetch more now."""
        self._was_full = self._bytes >= QUEUE_BYTES
        return self._was_full

    def deliver(self, cursor: FetchState, decoded: Decoded) -> None:
        """Queue fetched batches."""
        for batch, nbytes in decoded.batches:
            self._queue.append((cursor, batch, nbytes))
            self._bytes += nbytes
        self._changed.set()

    def fail(self, error: OncueError) -> None:
        """Make `next` raise this error once the queue is empty; reading continues."""
        self._error = error
        self._changed.set()

    # ------------------------------------------------------------ the queue

    def _pop(self, most: int) -> list[RecordBatch]:
        queued = self._queue
        found: list[RecordBatch] = []
        if self._membership is not None:  # one transaction commits one partition
            first = queued[0][0]
            most = min(most, sum(1 for _ in takewhile(lambda item: item[0] is first, queued)))
        while queued and len(found) < most:
            _, batch, nbytes = queued.popleft()
            found.append(batch)
            self._bytes -= nbytes
        if self._was_full and self._bytes < QUEUE_BYTES:
            self._fetcher.wake()
        return found

    def _drop(self, cursor: FetchState) -> None:
        kept = [item for item in self._queue if item[0] is not cursor]
        self._queue = deque(kept)
        self._bytes = sum(item[2] for item in kept)


def membership_callbacks(
    reader: KafkaReader, group: str, offsets: Offsets, transactions: Transactions
) -> tuple[Any, Any]:
    """Return the callbacks (gained, lost) of the reader's Membership."""

    async def gained(places: Sequence[Partition]) -> None:
        fenced = {place for place in places if transactions.fenced(group, place)}
        await asyncio.gather(*[transactions.claim(group, place) for place in places])
        # After all claims: previous owners may commit until then.
        committed = await offsets.committed(group)
        ends = await offsets.of({topic for topic, _ in places}, END)
        for place in places:
            at = committed.get(place, 0)
            if at > ends.get(place, at):
                again = "%s/%d ends at %d, and the group %s has read %d records: it reads all again"
                logger.error(again, *place, ends[place], group, at)
                at = 0
            # If another process owned it meanwhile, that process has handled the batches in flight
            # here. (The group may not have this process's latest offset yet.)
            if place in fenced or reader.done.get(place, -1) < at:
                reader.drop_partition(place)
                reader.done[place] = at
                reader.add_partition(place, at)

    async def lost(place: Partition) -> None:
        reader.drop_partition(place)
        await transactions.release(group, place)

    return gained, lost
