"""Kafka transactions: records and a group's offsets, committed together.

Each input partition of a group has producers with their own transactional ids. A server that takes
over a partition claims the ids. From then on the brokers reject the previous server (paused, for
example), and abort its open transactions. So a partition's offset and the records derived from
it come from one server at a time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as k
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from oncue.errors import NotOwner
from oncue.log.base import Partition, Position, Record
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.producer_ids import ProducerId, ProducerIds, use_producer_id
from oncue.log.kafka.topics import KafkaTopic
from oncue.log.kafka.writer import BATCH_BYTES, PartitionedRecords, append_records, encoded_size, wait_until_known

logger = logging.getLogger(__name__)

# A crash inside a transaction blocks read_committed readers for so long, unless a successor claims
# the partition earlier.
TIMEOUT_MS = 15_000
CLOSE_S = 10.0
PATIENCE_S = 30.0  # for retries while leaders change
PAUSE_S = 0.1


class TransactionBatch:
    """One Kafka batch of a transaction; may contain several appends."""

    def __init__(self, topic: KafkaTopic, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[Record] = []
        self.appends: list[tuple[int, int]] = []  # index of the position, number of records
        self.nbytes = 0


class PartitionProducers:
    """Producers of one input partition; one transaction at a time.

    Two producers alternate: the brokers reject a producer's next transaction until the markers of
    its last one are written, and aiokafka then waits 20 or 100 ms. Commits stay in order: the
    second transaction begins when the first is durable, and a group's later offset wins. Producers
    are created on first use, because many partitions never have a transaction.
    """

    def __init__(self, address: Address, ids: ProducerIds, name: str) -> None:
        self._address, self._ids, self._name = address, ids, name
        self._claimed: list[ProducerId | None] = [None, None]
        self._producers: list[AIOKafkaProducer | None] = [None, None]
        self._turn = 0
        self.fenced = False  # another server claimed the ids: no commits here until claimed again
        self.lock = asyncio.Lock()

    async def claim(self) -> None:
        """Claim the ids, which fences their previous owner. Raises LogError."""
        async with self.lock:
            await self._close()
            names = [self._transactional_id(turn) for turn in range(len(self._producers))]
            try:
                self._claimed = list(await asyncio.gather(*[self._ids.claim(name, TIMEOUT_MS) for name in names]))
            except (k.KafkaError, OSError) as e:
                raise explain(e, str(self._address), "start a transactional producer") from e
            self.fenced = False

    def _transactional_id(self, turn: int) -> str:
        return f"{self._name}/{turn}"

    async def _open(self, turn: int) -> AIOKafkaProducer:
        producer = self._producers[turn]
        if producer is None:
            producer = AIOKafkaProducer(
                **self._address.client,
                client_id="oncue",
                transactional_id=self._transactional_id(turn),
                transaction_timeout_ms=TIMEOUT_MS,
                compression_type="lz4",
                max_batch_size=2 * self._address.record_bytes + BATCH_BYTES,
                max_request_size=2 * self._address.record_bytes,
                metadata_max_age_ms=30_000,
            )
            if (found := self._claimed[turn]) is not None:
                use_producer_id(producer, found)
            try:
                await producer.start()
            except (k.KafkaError, OSError) as e:
                await _stopped(producer)
                raise explain(e, str(self._address), "start a transactional producer") from e
            self._producers[turn], self._claimed[turn] = producer, None
        return producer

    async def run(
        self,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        batches: Sequence[TransactionBatch],
        count: int,
    ) -> list[Position]:
        """Run one transaction.

        Raises NotOwner if another server claimed the ids, LogError; then nothing of it is visible.
        """
        end = time.monotonic() + PATIENCE_S
        async with self.lock:
            while True:
                if self.fenced:  # a new producer would fence the current owner
                    raise NotOwner(f"another server has claimed the transactional ids {self._name}")
                self._turn = 1 - self._turn
                producer = await self._open(self._turn)
                try:
                    positions = await self._prepare(producer, group, offsets, batches, count)
                except Exception as e:
                    await self._abort(producer, e)
                    # Aborted, so it can be retried: aiokafka does not wait for a new leader here.
                    if getattr(e, "retriable", False) and time.monotonic() < end:
                        await asyncio.sleep(PAUSE_S)
                        continue
                    raise explain(e, str(self._address), f"commit for the group {group!r}") from e
                try:
                    await producer.commit_transaction()
                except Exception as e:
                    await self._abort(producer, e)
                    raise explain(e, str(self._address), f"commit for the group {group!r}") from e
                return positions

    async def _prepare(
        self,
        producer: AIOKafkaProducer,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        batches: Sequence[TransactionBatch],
        count: int,
    ) -> list[Position]:
        """Begin a transaction; send its records and offsets."""
        positions: list[Position | None] = [None] * count
        in_flight = []
        await producer.begin_transaction()
        for sent in batches:
            await wait_until_known(producer, sent.topic.full, sent.partition)
            builder = producer.create_batch()
            append_records(builder, sent.topic, sent.records)
            future = await producer.send_batch(builder, sent.topic.full, partition=sent.partition)
            future.add_done_callback(_retrieve)  # only the first failure is raised
            in_flight.append(future)
        if offsets:
            await producer.send_offsets_to_transaction(dict(offsets), group)
        for sent, future in zip(batches, in_flight, strict=True):
            first = (await future).offset
            for index, records in sent.appends:
                positions[index] = Position(sent.topic.name, sent.partition, first, records)
                first += records
        return [p for p in positions if p is not None]

    async def _abort(self, producer: AIOKafkaProducer, error: Exception) -> None:
        """Abort, so that readers need not wait for the timeout; drop the producer."""
        self.fenced = isinstance(error, k.ProducerFenced | k.InvalidProducerEpoch)
        try:
            await asyncio.wait_for(producer.abort_transaction(), CLOSE_S)
        except Exception as e:  # it is broken already: the brokers abort it
            logger.info("a transaction could not be aborted: %s", e)
        self._producers = [p if p is not producer else None for p in self._producers]
        await _stopped(producer)
        # asyncio would warn about a failed future that aiokafka leaves behind.
        waiter = getattr(getattr(producer, "_txn_manager", None), "_transaction_waiter", None)
        if waiter is not None and waiter.done():
            _retrieve(waiter)

    async def _close(self) -> None:
        producers, self._producers, self._claimed = self._producers, [None, None], [None, None]
        await asyncio.gather(*[_stopped(p) for p in producers if p is not None])

    async def close(self) -> None:
        async with self.lock:
            await self._close()


class Transactions:
    """All transactional producers of a log."""

    def __init__(self, address: Address, ids: ProducerIds) -> None:
        self._address, self._ids = address, ids
        self._producers_of: dict[str, PartitionProducers] = {}
        self._own_id = secrets.token_hex(6)  # for commits without an input partition

    def producers_of(self, group: str, place: Partition | None) -> PartitionProducers:
        where = f"{place[0]}/{place[1]}" if place else self._own_id
        name = f"{self._address.options.prefix}oncue/{group}/{where}"
        found = self._producers_of.get(name)
        if found is None:
            found = self._producers_of[name] = PartitionProducers(self._address, self._ids, name)
        return found

    async def claim(self, group: str, place: Partition) -> None:
        await self.producers_of(group, place).claim()

    def fenced(self, group: str, place: Partition) -> bool:
        return self.producers_of(group, place).fenced

    async def release(self, group: str, place: Partition) -> None:
        """Close the partition's producers: another process owns it now."""
        await self.producers_of(group, place).close()

    async def commit(
        self,
        group: str,
        place: Partition | None,
        offsets: Mapping[TopicPartition, tuple[int, str]],
        appends: Sequence[tuple[KafkaTopic, PartitionedRecords]],
    ) -> list[Position]:
        """Commit offsets (next offset, metadata) and appends in one transaction.

        Returns positions in the order of the appends and their partitions.
        """
        found = {tp: OffsetAndMetadata(offset, note) for tp, (offset, note) in offsets.items()}
        batches, count = _batches(appends, self._address.record_bytes)
        full = self._address.options.prefix + group
        running = asyncio.create_task(self.producers_of(group, place).run(full, found, batches, count))
        running.add_done_callback(_retrieve)
        # Cancelling the caller must not interrupt the transaction.
        return await asyncio.shield(running)

    async def close(self) -> None:
        closing = [asyncio.wait_for(c.close(), CLOSE_S) for c in self._producers_of.values()]
        for error in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(error, BaseException):
                logger.warning("a transaction did not end before the log was closed: %s", error)


def _batches(
    appends: Sequence[tuple[KafkaTopic, PartitionedRecords]], limit: int
) -> tuple[list[TransactionBatch], int]:
    """Group appends into few large batches, by partition."""
    done: list[TransactionBatch] = []
    open_: dict[tuple[str, int], TransactionBatch] = {}
    index = 0
    for topic, found in appends:
        for partition, records in found:
            nbytes = encoded_size(records)
            sent = open_.get((topic.name, partition))
            if sent is None or sent.nbytes + nbytes > limit:
                sent = open_[topic.name, partition] = TransactionBatch(topic, partition)
                done.append(sent)
            sent.records += records
            sent.nbytes += nbytes
            sent.appends.append((index, len(records)))
            index += 1
    return done, index


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _stopped(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), CLOSE_S)
    except Exception as e:
        logger.info("stopping a transactional producer failed: %s", e)
        await producer.client.close()
