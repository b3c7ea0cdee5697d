"""What a batch caused and the group's offset, together: a Kafka transaction.

The producers of an input partition of a group have transactional ids of their own. A server that takes over a partition claims
the ids, and from then on the brokers refuse the server that had it before (a zombie that was paused, say): whatever that one
still has under way is aborted. So a partition's offset and its effects come from one server at a time.
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
from oncue.log.kafka.producer_ids import ProducerId, ProducerIds, give
from oncue.log.kafka.topics import Known
from oncue.log.kafka.writer import BATCH_BYTES, Places, fill, seen, size

logger = logging.getLogger(__name__)

# A server that dies inside a transaction holds up readers of what it wrote to for so long, unless its successor claims
# the partition before.
TIMEOUT_MS = 15_000
CLOSE_S = 10.0
PATIENCE_S = 30.0  # with a cluster that changes its leaders
PAUSE_S = 0.1


class Sent:
    """One Kafka batch of a transaction, of some appends: (index of the position, count of records)."""

    def __init__(self, topic: Known, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[Record] = []
        self.shares: list[tuple[int, int]] = []
        self.nbytes = 0


class Channel:
    """The producers of one input partition; one transaction at a time.

    Two of them take turns: the brokers refuse a producer's next transaction until the marks of its last one are written,
    and aiokafka then waits 20 ms, or 100. What is committed is committed in order all the same: the second begins when the
    first is durable, and of a group's offsets the one that was written later stays. A producer is made when there is
    something to commit: many partitions never have a transaction."""

    def __init__(self, address: Address, ids: ProducerIds, name: str) -> None:
        self._address, self._ids, self._name = address, ids, name
        self._claimed: list[ProducerId | None] = [None, None]
        self._producers: list[AIOKafkaProducer | None] = [None, None]
        self._turn = 0
        self.fenced = (
            False  # another server has claimed it: nothing more is committed here until this one claims it again
        )
        self.lock = asyncio.Lock()

    async def claim(self) -> None:
        """Fence whoever had these ids. Raises LogError."""
        async with self.lock:
            await self._close()
            names = [self._called(turn) for turn in range(len(self._producers))]
            try:
                self._claimed = list(await asyncio.gather(*[self._ids.claim(name, TIMEOUT_MS) for name in names]))
            except (k.KafkaError, OSError) as e:
                raise explain(e, str(self._address), "take a transaction's producer") from e
            self.fenced = False

    def _called(self, turn: int) -> str:
        return f"{self._name}/{turn}"

    async def _open(self, turn: int) -> AIOKafkaProducer:
        producer = self._producers[turn]
        if producer is None:
            producer = AIOKafkaProducer(
                **self._address.client,
                client_id="oncue",
                transactional_id=self._called(turn),
                transaction_timeout_ms=TIMEOUT_MS,
                compression_type="lz4",
                max_batch_size=2 * self._address.record_bytes + BATCH_BYTES,
                max_request_size=2 * self._address.record_bytes,
                metadata_max_age_ms=30_000,
            )
            if (found := self._claimed[turn]) is not None:
                give(producer, found)
            try:
                await producer.start()
            except (k.KafkaError, OSError) as e:
                await _stopped(producer)
                raise explain(e, str(self._address), "take a transaction's producer") from e
            self._producers[turn], self._claimed[turn] = producer, None
        return producer

    async def run(
        self, group: str, offsets: Mapping[TopicPartition, OffsetAndMetadata], batches: Sequence[Sent], count: int
    ) -> list[Position]:
        """Raises NotOwner when the id was claimed by another, LogError; then nothing of it is visible."""
        end = time.monotonic() + PATIENCE_S
        async with self.lock:
            while True:
                if self.fenced:  # another producer of the same name would fence the rightful owner
                    raise NotOwner(f"another server has taken over what {self._name} was for")
                self._turn = 1 - self._turn
                producer = await self._open(self._turn)
                try:
                    positions = await self._prepare(producer, group, offsets, batches, count)
                except Exception as e:
                    await self._give_up(producer, e)
                    # Aborted, so that it may be done again: a leader that moves, say, which aiokafka does not wait out here.
                    if getattr(e, "retriable", False) and time.monotonic() < end:
                        await asyncio.sleep(PAUSE_S)
                        continue
                    raise explain(e, str(self._address), f"commit for the group {group!r}") from e
                try:
                    await producer.commit_transaction()
                except Exception as e:
                    await self._give_up(producer, e)
                    raise explain(e, str(self._address), f"commit for the group {group!r}") from e
                return positions

    async def _prepare(
        self,
        producer: AIOKafkaProducer,
        group: str,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        batches: Sequence[Sent],
        count: int,
    ) -> list[Position]:
        """All of a transaction but its end."""
        positions: list[Position | None] = [None] * count
        under_way = []
        await producer.begin_transaction()
        for sent in batches:
            await seen(producer, sent.topic.full, sent.partition)
            builder = producer.create_batch()
            fill(builder, sent.topic, sent.records)
            future = await producer.send_batch(builder, sent.topic.full, partition=sent.partition)
            future.add_done_callback(_look)  # the first failure is told; the others must not be told as forgotten ones
            under_way.append(future)
        if offsets:
            await producer.send_offsets_to_transaction(dict(offsets), group)
        for sent, future in zip(batches, under_way, strict=True):
            first = (await future).offset
            for index, records in sent.shares:
                positions[index] = Position(sent.topic.name, sent.partition, first, records)
                first += records
        return [p for p in positions if p is not None]

    async def _give_up(self, producer: AIOKafkaProducer, error: Exception) -> None:
        """Abort, so that readers need not wait for the time-out; then another producer begins anew."""
        self.fenced = isinstance(error, k.ProducerFenced | k.InvalidProducerEpoch)
        try:
            await asyncio.wait_for(producer.abort_transaction(), CLOSE_S)
        except Exception as e:  # it is broken already: the brokers abort it
            logger.info("a transaction could not be aborted in order: %s", e)
        self._producers = [p if p is not producer else None for p in self._producers]
        await _stopped(producer)
        # aiokafka leaves its own failed future behind, which asyncio would complain of.
        waiter = getattr(getattr(producer, "_txn_manager", None), "_transaction_waiter", None)
        if waiter is not None and waiter.done():
            _look(waiter)

    async def _close(self) -> None:
        producers, self._producers, self._claimed = self._producers, [None, None], [None, None]
        await asyncio.gather(*[_stopped(p) for p in producers if p is not None])

    async def close(self) -> None:
        async with self.lock:
            await self._close()


class Transactions:
    def __init__(self, address: Address, ids: ProducerIds) -> None:
        self._address, self._ids = address, ids
        self._channels: dict[str, Channel] = {}
        self._mine = secrets.token_hex(6)  # for commits without an input partition, which nobody takes over

    def channel(self, group: str, place: Partition | None) -> Channel:
        where = f"{place[0]}/{place[1]}" if place else self._mine
        name = f"{self._address.options.prefix}oncue/{group}/{where}"
        found = self._channels.get(name)
        if found is None:
            found = self._channels[name] = Channel(self._address, self._ids, name)
        return found

    async def claim(self, group: str, place: Partition) -> None:
        await self.channel(group, place).claim()

    def fenced(self, group: str, place: Partition) -> bool:
        return self.channel(group, place).fenced

    async def release(self, group: str, place: Partition) -> None:
        """After what is under way: another process has the partition now."""
        await self.channel(group, place).close()

    async def commit(
        self,
        group: str,
        place: Partition | None,
        offsets: Mapping[TopicPartition, tuple[int, str]],
        appends: Sequence[tuple[Known, Places]],
    ) -> list[Position]:
        """`offsets`: (next offset, a note). Positions in the order of the appends and their places."""
        found = {tp: OffsetAndMetadata(offset, note) for tp, (offset, note) in offsets.items()}
        batches, count = _batches(appends, self._address.record_bytes)
        full = self._address.options.prefix + group
        running = asyncio.create_task(self.channel(group, place).run(full, found, batches, count))
        running.add_done_callback(_look)
        # A caller that stops waiting does not leave half a transaction behind.
        return await asyncio.shield(running)

    async def close(self) -> None:
        closing = [asyncio.wait_for(c.close(), CLOSE_S) for c in self._channels.values()]
        for error in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(error, BaseException):
                logger.warning("a transaction did not end before the log was closed: %s", error)


def _batches(appends: Sequence[tuple[Known, Places]], limit: int) -> tuple[list[Sent], int]:
    """Few large batches: all of one partition in one, as far as they fit."""
    done: list[Sent] = []
    open_: dict[tuple[str, int], Sent] = {}
    index = 0
    for topic, found in appends:
        for partition, records in found:
            nbytes = size(records)
            sent = open_.get((topic.name, partition))
            if sent is None or sent.nbytes + nbytes > limit:
                sent = open_[topic.name, partition] = Sent(topic, partition)
                done.append(sent)
            sent.records += records
            sent.nbytes += nbytes
            sent.shares.append((index, len(records)))
            index += 1
    return done, index


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _stopped(producer: AIOKafkaProducer) -> None:
    try:
        await asyncio.wait_for(producer.stop(), CLOSE_S)
    except Exception as e:
        logger.info("a transaction's producer did not end well: %s", e)
        await producer.client.close()
