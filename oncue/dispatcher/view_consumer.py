"""Consumes the log's topics into the view, and publishes its outcomes.

topics ──readers──► group of batches ──► view.apply (one transaction) ──► closed tasks ──► Notifier
                                            ├──► registry changed ──► reload
                                            └──► claims, cancels, tasks of other servers
                                                   ──► ownership, channels
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from oncue.dispatcher.live_feed import feed_items
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.start_progress import StartProgress
from oncue.errors import DiskFull, LogError, OncueError, Undecodable
from oncue.log import Log, Partition, Position, Reader, Record, RecordBatch
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call, Ended, Stored
from oncue.protocol.topics import DEAD, REGISTRY, RESULTS, TASKS_PREFIX
from oncue.view import View

log = logging.getLogger("oncue.feeder")
PUBLISHED = "oncue-told"  # header: id of the server that has published these outcomes
RETRY_S = 1.0  # after a failed read
GROUP = 64  # batches applied in one transaction
GROUP_RECORDS = 8_192  # likewise, while the view is brought to the log's end
SMALL_BYTES = 64 << 10
LINGER_S = 0.003  # a small batch waits so long for more, unless a request waits for the view


class ViewConsumer:
    """The only writer of a view. `catch_up`, `follow`, then `run`, then `close`."""

    def __init__(
        self,
        durable: Log,
        view: View,
        notifier: Notifier,
        server: str,
        on_registry: Callable[[], Awaitable[None]],
        on_batch: Callable[[RecordBatch], None],
        writes_dead_letters: Callable[[], bool],
    ) -> None:
        """Prepare; reads nothing yet.

        `on_registry`, `on_batch`: called after the view has applied registry records, or any batch.
        `writes_dead_letters`: True if this server appends the dead letters of unreadable records.
        """
        self._log, self._view, self._notifier, self._on_registry = durable, view, notifier, on_registry
        self._on_batch, self._writes_dead_letters = on_batch, writes_dead_letters
        self._published_headers = ((PUBLISHED, server.encode()),)
        self._queue: asyncio.Queue[list[RecordBatch]] = asyncio.Queue(GROUP)
        self._readers: dict[str, Reader] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self.applied = 0  # batches
        self.trouble = ""  # why the view does not follow the log
        self.patient = False  # wait for space if the view's disk is full; else `run` raises DiskFull

    def follow(self, topics: Iterable[str], name: str) -> None:
        """Read these topics too, from the view's positions on."""
        if name in self._readers:
            return
        reader = self._log.read(list(topics), start=self._view.positions())
        self._readers[name] = reader
        self._pumps[name] = asyncio.create_task(self._pump(reader), name=f"feeder {name}")

    def follow_tasks(self, topic: str) -> None:
        """Read a task topic too."""
        self.follow([topic], topic)

    async def catch_up(self, topics: Iterable[str], ends: Mapping[Partition, int], progress: StartProgress) -> None:
        """Bring the view to these end offsets. `progress` counts the records.

        The topics are merged by the times of their records, so a rebuilt view has its lists in the
        order of the old one.
        """
        streams = [_TopicStream(self._log.read([name], start=self._view.positions()), name, ends) for name in topics]
        heap: list[tuple[int, int, _TopicStream]] = []
        begin = self._view.positions()
        progress.begin("bringing the view to the log's end", _records(begin, ends))
        try:
            for n, stream in enumerate(streams):
                if (time_us := await stream.head(self._view.positions())) is not None:
                    heapq.heappush(heap, (time_us, n, stream))
            group: list[RecordBatch] = []
            count = 0  # of its records
            while heap:
                _, n, stream = heapq.heappop(heap)
                group.append(stream.dequeue())
                if (time_us := await stream.head({})) is not None:
                    heapq.heappush(heap, (time_us, n, stream))
                count += len(group[-1].records)
                if len(group) >= GROUP or count >= GROUP_RECORDS or not heap:
                    await self._apply(group)
                    group, count = [], 0
                    progress.advance(_records(begin, self._view.positions()))
        finally:
            for stream in streams:
                await stream.reader.close()

    async def _pump(self, reader: Reader) -> None:
        while True:
            try:
                batches = await reader.next(max_batches=GROUP)
            except LogError as e:  # a damaged page, say: others go on
                if not self.trouble:
                    log.error("the log cannot be read: %s", e)
                self.trouble = e.message
                await asyncio.sleep(RETRY_S)
                continue
            self.trouble = ""
            await self._queue.put(batches)

    async def run(self) -> None:
        """Apply batches, until cancelled."""
        while True:
            batches = list(await self._queue.get())
            if self._queue.empty() and _bytes(batches) < SMALL_BYTES and not self._log.shared:
                # With one task at a time, writing the view would delay the task's own outcome. A
                # shared log also brings tasks and outcomes of other servers, which callers wait
                # for.
                await self._view.wait_for_waiters(LINGER_S)
            while len(batches) < GROUP and not self._queue.empty():
                batches += self._queue.get_nowait()
            await self._apply_patiently(batches)
            for batch in batches:
                self._on_batch(batch)

    async def _apply_patiently(self, batches: list[RecordBatch]) -> None:
        while True:
            try:
                return await self._apply(batches)
            except DiskFull as e:  # nothing was applied; the log keeps the records
                if not self.patient:
                    raise
                if not self.trouble:
                    log.error("%s; the view waits for space", e.message)
                self.trouble = e.message
                await asyncio.sleep(RETRY_S)

    async def _apply(self, batches: list[RecordBatch]) -> None:
        applied = await self._view.apply(batches, self._published(batches))
        self.applied += len(batches)
        by_call: dict[int, tuple[Call, list[Ended]]] = {}
        for c in applied.closed:
            by_call.setdefault(id(c.call), (c.call, []))[1].append(c.ended)
        for call, ends in by_call.values():
            self._notifier.publish(call, ends)
        if applied.dead and self._writes_dead_letters():
            self._append_dead_letters([Record(encode(letter)) for letter in applied.dead])
        if any(b.topic == REGISTRY for b in batches):
            await self._on_registry()
        if self._notifier.watched:
            for b in batches:
                for kind, item in feed_items(b):
                    self._notifier.publish_item(kind, item)

    def _published(self, batches: list[RecordBatch]) -> frozenset[tuple[str, int, int]]:
        """Return the positions of results that this server has published already."""
        headers = self._published_headers
        return frozenset(
            (b.topic, b.partition, offset)
            for b in batches
            if b.topic == RESULTS
            for offset, record in zip(b.offsets, b.records, strict=True)
            if record.headers == headers
        )

    def _append_dead_letters(self, records: list[Record]) -> None:
        self._log.append(DEAD, records).add_done_callback(_log_failure)

    async def close(self) -> None:
        """Stop reading."""
        for pump in self._pumps.values():
            pump.cancel()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)
        for reader in self._readers.values():
            await reader.close()


class _TopicStream:
    """Batches of one topic, up to given end offsets."""

    def __init__(self, reader: Reader, topic: str, ends: Mapping[Partition, int]) -> None:
        self.reader = reader
        self._left = {partition: end for partition, end in ends.items() if partition[0] == topic}
        self._batches: deque[RecordBatch] = deque()

    async def head(self, known: Mapping[Partition, int]) -> int | None:
        """Return the time of the next batch in µs; None at the end.

        `known`: offsets that are applied already.
        """
        self._left = {key: end for key, end in self._left.items() if known.get(key, 0) < end}
        while not self._batches:
            if not self._left:
                return None
            self._batches.extend(await self.reader.next(max_batches=GROUP))
        return _time_us(self._batches[0])

    def dequeue(self) -> RecordBatch:
        """Remove and return the next batch. Call `head` before."""
        batch = self._batches.popleft()
        partition = (batch.topic, batch.partition)
        if batch.next_offset >= self._left.get(partition, 0):
            self._left.pop(partition, None)
        return batch


class _Head(Stored, frozen=True):
    """The beginning of a TaskFrame."""

    v: int
    call: msgspec.Raw
    accepted_us: int


def _time_us(batch: RecordBatch) -> int:
    """Return the time of the batch's first record.

    Tasks have microseconds, because many may arrive in one millisecond.
    """
    if not batch.records:
        return 0
    record = batch.records[0]
    if batch.topic.startswith(TASKS_PREFIX):
        with contextlib.suppress(Undecodable):
            return decode(_Head, record.value).accepted_us
    return record.time_ms * 1000


def _records(begin: Mapping[Partition, int], end: Mapping[Partition, int]) -> int:
    """Return the number of records from the offsets `begin` to `end`."""
    return sum(max(0, offset - begin.get(place, 0)) for place, offset in end.items())


def _bytes(batches: list[RecordBatch]) -> int:
    return sum(len(record.value) for b in batches for record in b.records)


def _log_failure(future: asyncio.Future[list[Position]]) -> None:
    if not future.cancelled() and isinstance(future.exception(), OncueError):
        log.error("a dead letter could not be stored: %s", future.exception())
