"""Log → view → board: the one reader that keeps this server's view, and tells what the view alone could decide.

topics ──readers──► a group of batches ──► view.apply (one transaction) ──► closings ──► board
                                                   ├──► the registry changed ──► reload
                                                   └──► claims, cancels, tasks that other servers wrote ──► owners, lanes
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from oncue.dispatcher import live_feed
from oncue.dispatcher.notifier import Notifier
from oncue.errors import OncueError, Undecodable
from oncue.log import Log, Partition, Position, Reader, Record, RecordBatch
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import Call, Ended, Stored
from oncue.protocol.topics import DEAD, REGISTRY, RESULTS, TASKS_PREFIX
from oncue.view import View

log = logging.getLogger("oncue.feeder")
TOLD = "oncue-told"  # header: the server whose lane has told the closings of this record already
GROUP = 64  # batches applied in one transaction
SMALL_BYTES = 64 << 10
LINGER_S = 0.003  # little waits for company for so long, unless somebody waits for the view


class ViewConsumer:
    def __init__(
        self,
        durable: Log,
        view: View,
        board: Notifier,
        server: str,
        on_registry: Callable[[], Awaitable[None]],
        on_batch: Callable[[RecordBatch], None],
        buries: Callable[[], bool],
    ) -> None:
        self._log, self._view, self._board, self._on_registry = durable, view, board, on_registry
        self._on_batch, self._buries = on_batch, buries
        self._told_mark = server.encode()
        self._queue: asyncio.Queue[list[RecordBatch]] = asyncio.Queue(GROUP)
        self._readers: dict[str, Reader] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self.applied = 0  # batches

    def follow(self, topics: Iterable[str], name: str) -> None:
        """Read these topics too, from where the view is."""
        if name in self._readers:
            return
        reader = self._log.read(list(topics), start=self._view.positions())
        self._readers[name] = reader
        self._pumps[name] = asyncio.create_task(self._pump(reader), name=f"feeder {name}")

    def follow_tasks(self, topic: str) -> None:
        self.follow([topic], topic)

    async def catch_up(self, topics: Iterable[str], ends: Mapping[Partition, int]) -> None:
        """Bring the view to these end offsets, in the order in which the records came: the topics are merged by the times
        of their records. A view that is built anew has its lists in the order of the old one."""
        streams = [_Stream(self._log.read([name], start=self._view.positions()), name, ends) for name in topics]
        heap: list[tuple[int, int, _Stream]] = []
        try:
            for n, stream in enumerate(streams):
                if (time_us := await stream.head(self._view.positions())) is not None:
                    heapq.heappush(heap, (time_us, n, stream))
            group: list[RecordBatch] = []
            while heap:
                _, n, stream = heapq.heappop(heap)
                group.append(stream.take())
                if (time_us := await stream.head({})) is not None:
                    heapq.heappush(heap, (time_us, n, stream))
                if len(group) >= GROUP or not heap:
                    await self._apply(group)
                    group = []
        finally:
            for stream in streams:
                await stream.reader.close()

    async def _pump(self, reader: Reader) -> None:
        while True:
            await self._queue.put(await reader.next(max_batches=GROUP))

    async def run(self) -> None:
        while True:
            batches = list(await self._queue.get())
            if self._queue.empty() and _bytes(batches) < SMALL_BYTES and not self._log.shared:
                # One task at a time: its view would be written on the very core that carries its outcome. From a shared
                # log come other servers' tasks and outcomes as well, which somebody waits for.
                await self._view.wait_for_waiters(LINGER_S)
            while len(batches) < GROUP and not self._queue.empty():
                batches += self._queue.get_nowait()
            await self._apply(batches)
            for batch in batches:
                self._on_batch(batch)

    async def _apply(self, batches: list[RecordBatch]) -> None:
        applied = await self._view.apply(batches, self._told(batches))
        self.applied += len(batches)
        by_call: dict[int, tuple[Call, list[Ended]]] = {}
        for c in applied.closed:
            by_call.setdefault(id(c.call), (c.call, []))[1].append(c.ended)
        for call, ends in by_call.values():
            self._board.tell(call, ends)
        if applied.dead and self._buries():
            self._bury([Record(encode(letter)) for letter in applied.dead])
        if any(b.topic == REGISTRY for b in batches):
            await self._on_registry()
        if self._board.watched:
            for b in batches:
                for kind, item in live_feed.of(b):
                    self._board.show(kind, item)

    def _told(self, batches: list[RecordBatch]) -> frozenset[tuple[str, int, int]]:
        mark = ((TOLD, self._told_mark),)
        return frozenset(
            (b.topic, b.partition, offset)
            for b in batches
            if b.topic == RESULTS
            for offset, record in zip(b.offsets, b.records, strict=True)
            if record.headers == mark
        )

    def _bury(self, records: list[Record]) -> None:
        self._log.append(DEAD, records).add_done_callback(_say_failed)

    async def close(self) -> None:
        for pump in self._pumps.values():
            pump.cancel()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)
        for reader in self._readers.values():
            await reader.close()


class _Stream:
    """A topic on its way to its end."""

    def __init__(self, reader: Reader, topic: str, ends: Mapping[Partition, int]) -> None:
        self.reader = reader
        self._left = {place: end for place, end in ends.items() if place[0] == topic}
        self._batches: deque[RecordBatch] = deque()

    async def head(self, have: Mapping[Partition, int]) -> int | None:
        """The time of the next batch (µs); None at the end. `have`: what need not be read."""
        self._left = {place: end for place, end in self._left.items() if have.get(place, 0) < end}
        while not self._batches:
            if not self._left:
                return None
            self._batches.extend(await self.reader.next(max_batches=GROUP))
        return _time_us(self._batches[0])

    def take(self) -> RecordBatch:
        batch = self._batches.popleft()
        place = (batch.topic, batch.partition)
        if batch.next_offset >= self._left.get(place, 0):
            self._left.pop(place, None)
        return batch


class _Head(Stored, frozen=True):
    """The beginning of a TaskFrame."""

    v: int
    call: msgspec.Raw
    accepted_us: int


def _time_us(batch: RecordBatch) -> int:
    """When its first record came; of tasks to the microsecond, for many may come in one millisecond."""
    if not batch.records:
        return 0
    record = batch.records[0]
    if batch.topic.startswith(TASKS_PREFIX):
        with contextlib.suppress(Undecodable):
            return decode(_Head, record.value).accepted_us
    return record.time_ms * 1000


def _bytes(batches: list[RecordBatch]) -> int:
    return sum(len(record.value) for b in batches for record in b.records)


def _say_failed(future: asyncio.Future[list[Position]]) -> None:
    if not future.cancelled() and isinstance(future.exception(), OncueError):
        log.error("a dead letter could not be stored: %s", future.exception())
