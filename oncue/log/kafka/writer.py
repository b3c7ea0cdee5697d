"""Sends appends to the brokers, with one queue per partition.

    append ──► PartitionQueue ──► one batch, up to BATCH_BYTES ──► producer ──► offsets ──► futures

Each partition has one batch in flight: so records are stored in the order of the calls, and further
appends gather into the next batch. A producer (idempotent, acks=all) retries a batch while brokers
are down. The broker recognizes retries by sequence number: nothing is lost or duplicated. If a
broker rejects a batch for good, only its appends fail. The producer's sequence numbers then have a
gap, so a new producer replaces it.
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

from oncue.clocks.process import now_ms
from oncue.errors import LogError, OncueError, TooLarge
from oncue.log.base import Position, Record, partition_of
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.topics import KafkaTopic

logger = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
OVERHEAD = 32  # upper limit per record in a batch, without headers
LATE_S = 10.0  # interval of warnings about a batch in flight
SEEN_S = 15.0  # until brokers report a new partition
CLOSE_S = 30.0  # to write what is queued
PartitionedRecords = list[tuple[int, Sequence[Record]]]  # partition, its records


class KafkaCounters:
    """Counters for metrics, since the log was opened.

    `commits` counts acknowledged batches, `commit_s` is the last one's duration.
    """

    def __init__(self) -> None:
        self.commits = self.records = self.bytes = self.failures = 0
        self.commit_s = 0.0


class PendingAppend:
    """An append, complete when the records of all its partitions are."""

    __slots__ = ("error", "future", "left", "positions", "topic")

    def __init__(self, topic: KafkaTopic, future: asyncio.Future[list[Position]], parts: int) -> None:
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


class QueuedRecords:
    """Records of one append for one partition."""

    __slots__ = ("index", "nbytes", "records", "write")

    def __init__(self, write: PendingAppend, index: int, records: Sequence[Record], nbytes: int) -> None:
        self.write, self.index, self.records, self.nbytes = write, index, records, nbytes


class PartitionQueue:
    """Records queued for one partition, in order."""

    __slots__ = ("partition", "since", "topic", "waiting", "working")

    def __init__(self, topic: KafkaTopic, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.waiting: deque[QueuedRecords] = deque()
        self.working: asyncio.Task[None] | None = None
        self.since = 0.0  # when the batch in flight was created


class KafkaWriter:
    """Appends records; calls `publish(topic, records)` once they are durable.

    `publish` runs before the append's future resolves.
    """

    def __init__(self, address: Address, publish: Callable[[KafkaTopic, Sequence[Record]], None]) -> None:
        self._address, self._publish = address, publish
        self._queues: dict[tuple[str, int], PartitionQueue] = {}
        self._producer: AIOKafkaProducer | None = None
        self._renewing: asyncio.Task[AIOKafkaProducer] | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self.counters = KafkaCounters()

    async def start(self) -> None:
        self._producer = await self._new()

    async def _new(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._address.client,
            client_id="oncue",
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            # Large enough never to apply: the limits are those checked below.
            max_batch_size=2 * self._address.record_bytes + BATCH_BYTES,
            max_request_size=2 * self._address.record_bytes,
            metadata_max_age_ms=30_000,
        )
        try:
            await producer.start()
        except (k.KafkaError, OSError) as e:
            await producer.stop()
            raise explain(e, str(self._address), "start a producer") from e
        return producer

    @property
    def depth(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def late_s(self) -> float:
        """Return how long the oldest batch has been in flight."""
        waiting = [queue.since for queue in self._queues.values() if queue.working is not None and queue.since]
        return time.monotonic() - min(waiting) if waiting else 0.0

    # ------------------------------------------------------------ queues

    def enqueue(self, topic: KafkaTopic, parts: PartitionedRecords, future: asyncio.Future[list[Position]]) -> None:
        write = PendingAppend(topic, future, len(parts))
        for index, (partition, records) in enumerate(parts):
            queue = self._queues.get((topic.name, partition))
            if queue is None:
                queue = self._queues[topic.name, partition] = PartitionQueue(topic, partition)
            queue.waiting.append(QueuedRecords(write, index, records, encoded_size(records)))
            if queue.working is None:
                queue.working = asyncio.create_task(self._work(queue), name=f"kafka {topic.name}/{partition}")

    async def flush(self) -> None:
        """Wait until all queued appends are durable or have failed."""
        waiting = [queue.waiting[-1].write.future for queue in self._queues.values() if queue.waiting]
        if waiting:
            await asyncio.wait(waiting)

    # ------------------------------------------------------------ one partition

    async def _work(self, queue: PartitionQueue) -> None:
        try:
            while queue.waiting:
                parts, queue.since = _fitting(queue.waiting), time.monotonic()
                await self._send(queue, parts)
                for _ in parts:
                    queue.waiting.popleft()
        finally:
            queue.working = None

    async def _send(self, queue: PartitionQueue, parts: list[QueuedRecords]) -> None:
        started = time.perf_counter()
        producer: AIOKafkaProducer | None = None
        try:
            producer = await self._current()
            batch = producer.create_batch()
            for part in parts:
                append_records(batch, queue.topic, part.records)
            await wait_until_known(producer, queue.topic.full, queue.partition)
            sent = await producer.send_batch(batch, queue.topic.full, partition=queue.partition)
            first = await self._wait_for_offset(sent, queue)
        except Exception as e:
            if producer is not None:
                self._retire(producer)
            self.counters.failures += len(parts)
            error = explain(e, str(self._address), f"append to {queue.topic.full}/{queue.partition}")
            for part in parts:
                part.write.part_done(part.index, None, error)
            return
        for part in parts:
            count = len(part.records)
            self._publish(queue.topic, part.records)
            part.write.part_done(part.index, Position(queue.topic.name, queue.partition, first, count))
            first += count
            self.counters.records += count
            self.counters.bytes += part.nbytes
        self.counters.commits += 1
        self.counters.commit_s = time.perf_counter() - started

    async def _wait_for_offset(self, sent: asyncio.Future[Any], queue: PartitionQueue) -> int:
        """Return the first record's offset; log a warning while it takes long."""
        waited = 0.0
        while True:
            done, _ = await asyncio.wait([sent], timeout=LATE_S)
            if done:
                return int(sent.result().offset)
            waited += LATE_S
            place = f"{queue.topic.full}/{queue.partition}"
            logger.warning(
                "Kafka at %s has not acknowledged the records of %s for %.0f s", self._address, place, waited
            )

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
        """Replace the producer; its other batches in flight are still completed."""
        if producer is self._producer:
            self._producer = None
            task = asyncio.create_task(_stopped(producer))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        """Write queued appends; those not durable after 30 s fail."""
        working = [queue.working for queue in self._queues.values() if queue.working is not None]
        late: set[asyncio.Task[None]] = set()
        if working:
            _, late = await asyncio.wait(working, timeout=CLOSE_S)
        why = LogError(
            f"the log was closed while Kafka at {self._address} did not answer; these records may be lost",
            remedy="start the server again when the cluster is up, and repeat the appends that were not acknowledged",
        )
        for task in late:
            task.cancel()
        for queue in self._queues.values():
            for part in queue.waiting if late else ():
                part.write.part_done(part.index, None, why)
        if self._producer is not None:
            await _stopped(self._producer, 1.0 if late else CLOSE_S)
        await asyncio.gather(*self._retired, return_exceptions=True)


async def _stopped(producer: AIOKafkaProducer, timeout_s: float = CLOSE_S) -> None:
    """Stop a producer within a time limit, which aiokafka does not have."""
    try:
        await asyncio.wait_for(producer.stop(), timeout_s)
    except (k.KafkaError, OSError, TimeoutError) as e:
        logger.warning("stopping a Kafka producer failed: %s", e)
        await producer.client.close()


async def wait_until_known(producer: AIOKafkaProducer, full: str, partition: int) -> None:
    """Wait until the producer's own metadata contains a new partition.

    Raises UnknownTopicOrPartitionError if brokers do not report it within SEEN_S. Always adds the
    topic by name: aiokafka knows all topics at first, but drops those never named once the first
    is, and their batches then have no leader.
    """
    await producer.client.add_topic(full)
    end = time.monotonic() + SEEN_S
    while partition not in (producer.client.cluster.partitions_for_topic(full) or ()):
        if time.monotonic() > end:
            raise k.UnknownTopicOrPartitionError(f"{full}/{partition}")
        await producer.client.force_metadata_update()
        await asyncio.sleep(0.02)


def _fitting(queue: deque[QueuedRecords]) -> list[QueuedRecords]:
    """Return the first items of a queue that fit into one batch."""
    parts, total = [queue[0]], queue[0].nbytes
    for part in islice(queue, 1, None):
        total += part.nbytes
        if total > BATCH_BYTES:
            break
        parts.append(part)
    return parts


def append_records(batch: object, topic: KafkaTopic, records: Sequence[Record]) -> None:
    """Add records to aiokafka's batch builder."""
    append = batch.append  # type: ignore[attr-defined]
    compact = topic.compact
    for r in records:
        value: bytes | None = r.value if r.value or not (compact and r.key) else None  # a tombstone
        if append(timestamp=r.time_ms, key=r.key or None, value=value, headers=list(r.headers)) is None:
            raise LogError("aiokafka's batch was full before its limit")


def encoded_size(records: Sequence[Record]) -> int:
    """Return an upper limit of the records' size in a batch, before compression."""
    total = 0
    for r in records:
        total += len(r.value) + len(r.key) + OVERHEAD
        if r.headers:
            total += sum(len(name) * 4 + len(value) + 10 for name, value in r.headers)
    return total


def partition_records(
    topic: KafkaTopic, records: Sequence[Record], partition: int | None, limit: int
) -> PartitionedRecords:
    """Return the records of each partition, with timestamps.

    Checks all first, so that nothing is sent if a part cannot be stored. Raises LogError, TooLarge.
    """
    now = now_ms()
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
        nbytes = encoded_size(chosen)
        if nbytes > limit:
            raise TooLarge(
                f"{nbytes:,} bytes in one append to {topic.name!r}; the log on Kafka takes {limit:,}",
                remedy="send large payloads as blobs, or raise record_mb in the log's URL",
                limit_bytes=limit,
            )
    return list(found.items())
