"""Appends on their way to the brokers.

    append ──► Lane (a partition): queue ──► one batch of what waits, up to BATCH_BYTES ──► producer ──► offsets ──► futures

One batch of a partition is under way at a time: so records are stored in the order of their calls, and while one is under
way the next ones gather behind it. A producer (idempotent, acks=all) repeats a batch for as long as brokers are away,
and the broker knows a repetition by its number: nothing is lost and nothing doubled. A batch that a broker refuses for good
fails its appends alone; the producer's numbers are then no longer in order, so another takes over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as k

from oncue.errors import LogError, OncueError, TooLarge
from oncue.log.base import Position, Record, partition_of
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.topics import Known

logger = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
OVERHEAD = 32  # of a record in a batch, at most, without headers
LATE_S = 10.0  # then the log says that it waits
SEEN_S = 15.0  # until a broker shows a partition that is there
CLOSE_S = 30.0  # for what was handed over, at the end
Places = list[tuple[int, Sequence[Record]]]  # partition, its records


class Counters:
    """Since opening: batches acknowledged, records, bytes of values, appends that failed, seconds the last batch took."""

    def __init__(self) -> None:
        self.commits = self.records = self.bytes = self.failures = 0
        self.commit_s = 0.0


class Write:
    """One append: done when all its parts are."""

    __slots__ = ("error", "future", "left", "positions", "topic")

    def __init__(self, topic: Known, future: asyncio.Future[list[Position]], parts: int) -> None:
        self.topic, self.future, self.left = topic, future, parts
        self.positions: list[Position | None] = [None] * parts
        self.error: OncueError | None = None

    def part_done(self, index: int, position: Position | None, error: OncueError | None = None) -> None:
        self.positions[index] = position
        self.error = self.error or error
        self.left -= 1
        if self.left == 0 and not self.future.done():
            if self.error is not None:
                self.future.set_exception(self.error)
            else:
                self.future.set_result([p for p in self.positions if p is not None])


class Part:
    __slots__ = ("index", "nbytes", "records", "write")

    def __init__(self, write: Write, index: int, records: Sequence[Record], nbytes: int) -> None:
        self.write, self.index, self.records, self.nbytes = write, index, records, nbytes


class Lane:
    """One partition's parts, in order."""

    __slots__ = ("partition", "queue", "since", "topic", "working")

    def __init__(self, topic: Known, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.queue: deque[Part] = deque()
        self.working: asyncio.Task[None] | None = None
        self.since = 0.0  # when the batch that is under way began to be


class Writer:
    """`publish(topic, records)` is called for each part that is durable, before its future resolves."""

    def __init__(self, address: Address, publish: Callable[[Known, Sequence[Record]], None]) -> None:
        self._address, self._publish = address, publish
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._producer: AIOKafkaProducer | None = None
        self._renewing: asyncio.Task[AIOKafkaProducer] | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self.counters = Counters()

    async def start(self) -> None:
        self._producer = await self._new()

    async def _new(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._address.client,
            client_id="oncue",
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=2 * self._address.record_bytes + BATCH_BYTES,  # the limits are ours, below
            max_request_size=2 * self._address.record_bytes,
            metadata_max_age_ms=30_000,
        )
        try:
            await producer.start()
        except (k.KafkaError, OSError) as e:
            await producer.stop()
            raise explain(e, str(self._address), "take a producer") from e
        return producer

    @property
    def depth(self) -> int:
        return sum(len(lane.queue) for lane in self._lanes.values())

    def late_s(self) -> float:
        """For how long the batch has been under way that waits longest."""
        waiting = [lane.since for lane in self._lanes.values() if lane.working is not None and lane.since]
        return time.monotonic() - min(waiting) if waiting else 0.0

    # ------------------------------------------------------------ handed over

    def put(self, topic: Known, places: Places, future: asyncio.Future[list[Position]]) -> None:
        write = Write(topic, future, len(places))
        for index, (partition, records) in enumerate(places):
            lane = self._lanes.get((topic.name, partition))
            if lane is None:
                lane = self._lanes[topic.name, partition] = Lane(topic, partition)
            lane.queue.append(Part(write, index, records, size(records)))
            if lane.working is None:
                lane.working = asyncio.create_task(self._work(lane), name=f"kafka {topic.name}/{partition}")

    async def flush(self) -> None:
        """Until what is handed over by now is durable, or has failed."""
        waiting = [lane.queue[-1].write.future for lane in self._lanes.values() if lane.queue]
        if waiting:
            await asyncio.wait(waiting)

    # ------------------------------------------------------------ one partition

    async def _work(self, lane: Lane) -> None:
        try:
            while lane.queue:
                parts, lane.since = _fitting(lane.queue), time.monotonic()
                await self._send(lane, parts)
                for _ in parts:
                    lane.queue.popleft()
        finally:
            lane.working = None

    async def _send(self, lane: Lane, parts: list[Part]) -> None:
        started = time.perf_counter()
        producer: AIOKafkaProducer | None = None
        try:
            producer = await self._current()
            batch = producer.create_batch()
            for part in parts:
                fill(batch, lane.topic, part.records)
            await seen(producer, lane.topic.full, lane.partition)
            sent = await producer.send_batch(batch, lane.topic.full, partition=lane.partition)
            first = await self._patiently(sent, lane)
        except Exception as e:
            if producer is not None:
                self._retire(producer)
            self.counters.failures += len(parts)
            error = explain(e, str(self._address), f"append to {lane.topic.full}/{lane.partition}")
            for part in parts:
                part.write.part_done(part.index, None, error)
            return
        for part in parts:
            count = len(part.records)
            self._publish(lane.topic, part.records)
            part.write.part_done(part.index, Position(lane.topic.name, lane.partition, first, count))
            first += count
            self.counters.records += count
            self.counters.bytes += part.nbytes
        self.counters.commits += 1
        self.counters.commit_s = time.perf_counter() - started

    async def _patiently(self, sent: asyncio.Future[Any], lane: Lane) -> int:
        """The offset that the broker gave the first record; while it does not, the log says what it waits for."""
        waited = 0.0
        while True:
            done, _ = await asyncio.wait([sent], timeout=LATE_S)
            if done:
                return int(sent.result().offset)
            waited += LATE_S
            place = f"{lane.topic.full}/{lane.partition}"
            logger.warning("Kafka at %s has not taken the records of %s for %.0f s", self._address, place, waited)

    # ------------------------------------------------------------ producers

    async def _current(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return await asyncio.shield(self._renewing)

    async def _renew(self) -> AIOKafkaProducer:
        try:
            self._producer = await self._new()
            return self._producer
        finally:
            self._renewing = None

    def _retire(self, producer: AIOKafkaProducer) -> None:
        """What it has under way for other partitions still comes to its end."""
        if producer is self._producer:
            self._producer = None
            task = asyncio.create_task(_stopped(producer))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        """Write what was handed over; what is not durable after 30 s fails."""
        working = [lane.working for lane in self._lanes.values() if lane.working is not None]
        late: set[asyncio.Task[None]] = set()
        if working:
            _, late = await asyncio.wait(working, timeout=CLOSE_S)
        why = LogError(
            f"the log was closed while Kafka at {self._address} did not answer; these records may be lost",
            remedy="start the server again when the cluster is up, and repeat what was not acknowledged",
        )
        for task in late:
            task.cancel()
        for lane in self._lanes.values():
            for part in lane.queue if late else ():
                part.write.part_done(part.index, None, why)
        if self._producer is not None:
            await _stopped(self._producer, 1.0 if late else CLOSE_S)
        await asyncio.gather(*self._retired, return_exceptions=True)


async def _stopped(producer: AIOKafkaProducer, timeout_s: float = CLOSE_S) -> None:
    """aiokafka's own stop waits for its batches without an end."""
    try:
        await asyncio.wait_for(producer.stop(), timeout_s)
    except (k.KafkaError, OSError, TimeoutError) as e:
        logger.warning("a Kafka producer did not end well: %s", e)
        await producer.client.close()


async def seen(producer: AIOKafkaProducer, full: str, partition: int) -> None:
    """Until the producer, whose metadata is its own, knows the partition: it may be new. Raises UnknownTopicOrPartitionError
    when the brokers do not show it in SEEN_S.

    The topic is named to it in any case: aiokafka knows all topics at first, and at the first that it is asked for by name
    it forgets the others, whose batches then have no leader."""
    await producer.client.add_topic(full)
    end = time.monotonic() + SEEN_S
    while partition not in (producer.client.cluster.partitions_for_topic(full) or ()):
        if time.monotonic() > end:
            raise k.UnknownTopicOrPartitionError(f"{full}/{partition}")
        await producer.client.force_metadata_update()
        await asyncio.sleep(0.02)


def _fitting(queue: deque[Part]) -> list[Part]:
    """The first, and what fits beside it."""
    parts, total = [queue[0]], queue[0].nbytes
    for part in islice(queue, 1, None):
        total += part.nbytes
        if total > BATCH_BYTES:
            break
        parts.append(part)
    return parts


def fill(batch: object, topic: Known, records: Sequence[Record]) -> None:
    """Records into aiokafka's batch builder."""
    append = batch.append  # type: ignore[attr-defined]
    compact = topic.compact
    for r in records:
        value: bytes | None = r.value if r.value or not (compact and r.key) else None  # a tombstone
        if append(timestamp=r.time_ms, key=r.key or None, value=value, headers=list(r.headers)) is None:
            raise LogError("aiokafka's batch was full before its limit")


def size(records: Sequence[Record]) -> int:
    """In a batch, before compression; an upper limit."""
    total = 0
    for r in records:
        total += len(r.value) + len(r.key) + OVERHEAD
        if r.headers:
            total += sum(len(name) * 4 + len(value) + 10 for name, value in r.headers)
    return total


def places(topic: Known, records: Sequence[Record], partition: int | None, limit: int) -> Places:
    """Each partition's records, stamped; checked, so that what cannot be stored is refused before anything is sent.
    Raises LogError, TooLarge."""
    now = time.time_ns() // 1_000_000
    stamped = [r if r.time_ms else Record(r.value, r.key, r.headers, now) for r in records]
    found: dict[int, list[Record]] = {}
    if partition is None:
        for r in stamped:
            found.setdefault(partition_of(r.key, topic.count), []).append(r)
    elif 0 <= partition < topic.count:
        found[partition] = stamped
    else:
        raise LogError(
            f"the topic {topic.name!r} has no partition {partition}: it has {topic.count}",
            remedy="ensure() the topic with more partitions first",
        )
    if topic.compact and not all(r.key for r in stamped):
        raise LogError(
            f"the topic {topic.name!r} is compacted, so its records need keys", remedy="give each record its key"
        )
    for chosen in found.values():
        nbytes = size(chosen)
        if nbytes > limit:
            raise TooLarge(
                f"{nbytes:,} bytes in one append to {topic.name!r}; the log on Kafka takes {limit:,}",
                remedy="send large payloads as blobs, or raise record_mb in the log's URL",
                limit_bytes=limit,
            )
    return list(found.items())
