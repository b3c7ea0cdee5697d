"""Writes a dead letter to `oncue.dead` for each undecodable batch, once.

The offsets already written are stored as metadata in the offsets of a separate group, in the same
transaction: so no other reader or server, nor a restarted one, writes a second letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiokafka.structs import TopicPartition

from oncue.clocks.process import now_us
from oncue.errors import OncueError
from oncue.log.base import Partition, Record
from oncue.log.kafka.decoding import DamagedBatch
from oncue.log.kafka.offsets import Offsets
from oncue.log.kafka.topics import KafkaTopic, Topics
from oncue.log.kafka.transactions import Transactions
from oncue.log.kafka.writer import PartitionedRecords
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter
from oncue.protocol.topics import DEAD

logger = logging.getLogger(__name__)

GROUP = "oncue.buried"
METADATA_OFFSETS = 150  # Kafka accepts 4 KiB of metadata


class DeadLetterWriter:
    """Writes dead letters in the background."""

    def __init__(
        self,
        topics: Topics,
        offsets: Offsets,
        transactions: Transactions,
        partition_records: Callable[[KafkaTopic, Sequence[Record], int | None], PartitionedRecords],
    ) -> None:
        self._topics, self._offsets, self._transactions = topics, offsets, transactions
        self._partition_records = partition_records
        self._written: set[tuple[Partition, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    def add(self, topic: KafkaTopic, partition: int, damaged: DamagedBatch) -> None:
        key = ((topic.name, partition), damaged.first)
        if key in self._written:
            return
        self._written.add(key)
        logger.error("%s/%d at %d: %s", topic.name, partition, damaged.first, damaged.reason)
        task = asyncio.create_task(self._write(topic, partition, damaged))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, topic: KafkaTopic, partition: int, damaged: DamagedBatch) -> None:
        place = (topic.name, partition)
        letter = DeadLetter(
            v=VERSION,
            stage="decode",
            reason=damaged.reason,
            at_us=now_us(),
            topic=topic.name,
            partition=partition,
            offset=damaged.first,
            record=damaged.record,
            remedy="a broker's disk may be failing: check it; another copy of the partition may still have the record",
        )
        try:
            async with self._lock:
                _, metadata = (await self._offsets.fetch(GROUP)).get(place, (0, ""))
                written = [int(n) for n in metadata.split(",") if n]
                if damaged.first in written:
                    return
                written = [*written, damaged.first][-METADATA_OFFSETS:]
                dead = await self._topics.get_or_create(DEAD)
                offsets = {TopicPartition(topic.full, partition): (max(written) + 1, ",".join(map(str, written)))}
                records = self._partition_records(dead, [Record(encode(letter))], 0)
                await self._transactions.commit(GROUP, place, offsets, [(dead, records)])
        except OncueError as e:
            self._written.discard((place, damaged.first))
            logger.error("a dead letter could not be stored, and the next reader tries again: %s", e)

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
