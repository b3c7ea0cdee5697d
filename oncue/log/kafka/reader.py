"""Readers of the log on Kafka: a queue that the fetcher fills, and where each partition begins."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import takewhile
from typing import Any

from oncue.errors import LogError, OncueError
from oncue.log.base import Partition, Reader, RecordBatch, Start
from oncue.log.kafka.decoding import Decoded
from oncue.log.kafka.fetcher import Cursor, Fetcher
from oncue.log.kafka.membership import Membership
from oncue.log.kafka.offsets import END, Offsets
from oncue.log.kafka.topics import Known, Topics
from oncue.log.kafka.transactions import Transactions

QUEUE_BYTES = 16 * 1024 * 1024  # as stored; what is being fetched may come on top


class KafkaReader(Reader):
    def __init__(
        self,
        names: Iterable[str],
        topics: Topics,
        fetcher: Fetcher,
        offsets: Offsets,
        forget: Callable[[KafkaReader], None],
    ) -> None:
        self.names = frozenset(names)
        self.group: str | None = None  # whose partitions it shares
        self.done: dict[Partition, int] = {}  # of those: behind what the group has committed, as far as is known here
        self._topics, self._fetcher, self._offsets, self._forget = topics, fetcher, offsets, forget
        self._queue: deque[tuple[Cursor, RecordBatch, int]] = deque()
        self._bytes = 0
        self._was_full = False
        self._fresh = asyncio.Event()
        self._error: OncueError | None = None
        self._closed = ""
        self._cursors: dict[Partition, Cursor] = {}
        self._membership: Membership | None = None
        self._start: Start = "committed"
        self._started = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ where it begins

    def begin_at(self, start: Start, group: str | None) -> None:
        """All partitions."""
        self._start = start
        self._begin(lambda: self._place_all(start, group))

    def begin_in_group(self, group: str, membership: Membership) -> None:
        """Those that the group gives it."""
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
        await asyncio.gather(*[self._topics.need(name) for name in self.names])
        await membership.join(sorted(self.names))

    async def _place_all(self, start: Start, group: str | None) -> None:
        found = await asyncio.gather(*[self._topics.need(name) for name in self.names])
        places = [(topic, number) for topic in found for number in range(topic.count)]
        at: dict[Partition, int] = {}
        if start == "latest":
            at = await self._offsets.at(places, END)
        elif start == "committed" and group is not None:
            at = await self._offsets.committed(group)
        elif not isinstance(start, str):
            at = dict(start)
        for topic, number in places:
            self._follow(topic, number, at.get((topic.name, number), 0))

    def _follow(self, topic: Known, number: int, at: int) -> None:
        if not self._closed and (topic.name, number) not in self._cursors:
            cursor = self._cursors[topic.name, number] = Cursor(self, topic, number, at)
            self._fetcher.add(cursor)

    def grown(self, topic: Known, before: int) -> None:
        """The topic has more partitions; a group hears of it by its rebalance."""
        if topic.name in self.names and self._membership is None and self._started.is_set():
            for number in range(before, topic.count):
                self._follow(topic, number, 0)

    def follow(self, place: Partition, at: int) -> None:
        """The group gave this partition to this reader."""
        topic = self._topics.get(place[0])
        if topic is not None:
            self._follow(topic, place[1], at)

    def owns(self, place: Partition, first: int) -> bool:
        """Whether a batch that begins there is this process's to commit."""
        return self._membership is not None and place in self._membership.owned and first >= self.done.get(place, 0)

    def did(self, place: Partition, end: int) -> None:
        """All before this offset is done, and what it caused is durable."""
        if place in self.done:
            self.done[place] = end

    def mark(self, place: Partition, end: int) -> None:
        """Tell the group, soon."""
        if self._membership is not None:
            self._membership.mark(place, end)

    async def settle(self) -> None:
        """Until the group has been told, or is deciding anew."""
        if self._membership is not None:
            await self._membership.settle()

    def let_go(self, place: Partition) -> None:
        """The group gave it to another: what was fetched of it is the other's."""
        self.done.pop(place, None)
        cursor = self._cursors.pop(place, None)
        if cursor is not None:
            self._fetcher.remove([cursor])
            self._drop(cursor)

    # ------------------------------------------------------------ for users

    async def next(self, *, max_batches: int = 64) -> list[RecordBatch]:
        while True:
            if self._closed:
                raise LogError(self._closed)
            if self._queue:
                return self._pop(max_batches)
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            self._fresh.clear()
            await self._fresh.wait()

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
        self._fresh.set()

    # ------------------------------------------------------------ for the fetcher

    def full(self) -> bool:
        self._was_full = self._bytes >= QUEUE_BYTES
        return self._was_full

    def deliver(self, cursor: Cursor, decoded: Decoded) -> None:
        for batch, nbytes in decoded.batches:
            self._queue.append((cursor, batch, nbytes))
            self._bytes += nbytes
        self._fresh.set()

    def fail(self, error: OncueError) -> None:
        """Told by `next`, once the queue is empty; reading goes on if it can."""
        self._error = error
        self._fresh.set()

    # ------------------------------------------------------------ the queue

    def _pop(self, most: int) -> list[RecordBatch]:
        queued = self._queue
        found: list[RecordBatch] = []
        if self._membership is not None:  # a transaction takes what is of one partition
            first = queued[0][0]
            most = min(most, sum(1 for _ in takewhile(lambda item: item[0] is first, queued)))
        while queued and len(found) < most:
            _, batch, nbytes = queued.popleft()
            found.append(batch)
            self._bytes -= nbytes
        if self._was_full and self._bytes < QUEUE_BYTES:
            self._fetcher.wake()
        return found

    def _drop(self, cursor: Cursor) -> None:
        kept = [item for item in self._queue if item[0] is not cursor]
        self._queue = deque(kept)
        self._bytes = sum(item[2] for item in kept)


def group_reader(reader: KafkaReader, group: str, offsets: Offsets, transactions: Transactions) -> tuple[Any, Any]:
    """What a Membership calls: (gained, lost)."""

    async def gained(places: Sequence[Partition]) -> None:
        fenced = {place for place in places if transactions.fenced(group, place)}
        await asyncio.gather(*[transactions.claim(group, place) for place in places])
        committed = await offsets.committed(group)  # not before all claims: who had them may have committed until then
        for place in places:
            at = committed.get(place, 0)
            # Where another had it meanwhile, what is in flight here was done there. (The group may not have been told yet
            # how far this one is.)
            if place in fenced or reader.done.get(place, -1) < at:
                reader.let_go(place)
                reader.done[place] = at
                reader.follow(place, at)

    async def lost(place: Partition) -> None:
        reader.let_go(place)
        await transactions.release(group, place)

    return gained, lost
