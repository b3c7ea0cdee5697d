"""Batches that cannot be read go to `oncue.dead`, each once.

What was told is remembered as a note at the offsets of a group of its own, in the transaction that tells it: so neither
another reader, nor another server, nor one that starts again tells it twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from aiokafka.structs import TopicPartition

from oncue.errors import OncueError
from oncue.log.base import Partition, Record
from oncue.log.kafka.decoding import Damaged
from oncue.log.kafka.offsets import Offsets
from oncue.log.kafka.topics import Known, Topics
from oncue.log.kafka.transactions import Transactions
from oncue.log.kafka.writer import Places
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, DeadLetter
from oncue.protocol.topics import DEAD

logger = logging.getLogger(__name__)

GROUP = "oncue.buried"
NOTES = 150  # offsets in a note: Kafka takes 4 KiB


class Burial:
    def __init__(
        self,
        topics: Topics,
        offsets: Offsets,
        transactions: Transactions,
        place: Callable[[Known, Sequence[Record], int | None], Places],
    ) -> None:
        self._topics, self._offsets, self._transactions, self._place = topics, offsets, transactions, place
        self._told: set[tuple[Partition, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    def bury(self, topic: Known, partition: int, damaged: Damaged) -> None:
        key = ((topic.name, partition), damaged.first)
        if key in self._told:
            return
        self._told.add(key)
        logger.error("%s/%d at %d: %s", topic.name, partition, damaged.first, damaged.reason)
        task = asyncio.create_task(self._tell(topic, partition, damaged))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, topic: Known, partition: int, damaged: Damaged) -> None:
        place = (topic.name, partition)
        letter = DeadLetter(
            v=VERSION,
            stage="decode",
            reason=damaged.reason,
            at_us=time.time_ns() // 1_000,
            topic=topic.name,
            partition=partition,
            offset=damaged.first,
            record=damaged.record,
            remedy="a broker's disk may be failing: check it; another copy of the partition may still have the record",
        )
        try:
            async with self._lock:
                _, note = (await self._offsets.fetch(GROUP)).get(place, (0, ""))
                told = [int(n) for n in note.split(",") if n]
                if damaged.first in told:
                    return
                told = [*told, damaged.first][-NOTES:]
                dead = await self._topics.need(DEAD)
                offsets = {TopicPartition(topic.full, partition): (max(told) + 1, ",".join(map(str, told)))}
                records = self._place(dead, [Record(encode(letter))], 0)
                await self._transactions.commit(GROUP, place, offsets, [(dead, records)])
        except OncueError as e:
            self._told.discard((place, damaged.first))
            logger.error("a dead letter could not be stored, and the next reader tries again: %s", e)

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
