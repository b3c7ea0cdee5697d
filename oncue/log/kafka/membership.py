"""Which partitions of a group are this process's: a consumer that only takes part in the group, and fetches nothing.

After a rebalance each partition that is this process's is claimed (whoever had it can commit nothing any more), and begins
behind what the group committed; one that was here, and that nobody else has moved, goes on with its work in flight. One
that went is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as k
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.structs import TopicPartition

from oncue.errors import OncueError
from oncue.log.base import Partition
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.topics import Topics

logger = logging.getLogger(__name__)

Gained = Callable[[Sequence[Partition]], Awaitable[None]]
Lost = Callable[[Partition], Awaitable[None]]
PAUSE_S = 1.0
MARK_S = 0.05  # between two words of how far it is
NO_LIMIT_MS = 2**31 - 1


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def __init__(
        self,
        address: Address,
        topics: Topics,
        group: str,
        gained: Gained,
        lost: Lost,
        failed: Callable[[OncueError], None],
        told: Callable[[dict[Partition, int]], None],
    ) -> None:
        self._address, self._topics, self._group = address, topics, group
        self._gained, self._lost, self._failed, self._told = gained, lost, failed, told
        self.owned: set[Partition] = set()
        self.assignors: tuple[type[AbstractPartitionAssignor], ...] = (RoundRobinPartitionAssignor,)
        self._consumer: AIOKafkaConsumer | None = None
        self._marks: dict[Partition, int] = {}  # that the group has not been told
        self._marking: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def join(self, names: Iterable[str]) -> None:
        """Raises LogError."""
        session_ms = int(self._address.options.session_s * 1000)
        self._consumer = consumer = AIOKafkaConsumer(
            **self._address.client,
            client_id="oncue",
            group_id=self._address.options.prefix + self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=self.assignors,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(100, session_ms // 5),
            rebalance_timeout_ms=max(session_ms, 10_000),
            max_poll_interval_ms=NO_LIMIT_MS,  # how long a batch takes is the reader's affair
            metadata_max_age_ms=30_000,
            fetch_max_bytes=1,
            max_partition_fetch_bytes=1,
        )
        try:
            await consumer.start()
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), f"take a member of the group {self._group!r}") from e
        consumer.subscribe([self._topics.full(name) for name in names], listener=self)

    @property
    def coordinator(self) -> Any:
        """aiokafka's. Only of a member that has joined."""
        assert self._consumer is not None
        return self._consumer._coordinator

    def pause(self, places: Iterable[TopicPartition]) -> None:
        """Nothing of these is fetched."""
        assert self._consumer is not None
        self._consumer.pause(*places)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Until the group has a new order nobody else has them: work goes on."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.pause(assigned)
        now = {(name, tp.partition) for tp in assigned if (name := self._topics.short(tp.topic)) is not None}
        for place in self.owned - now:
            self.owned.discard(place)
            self._marks.pop(place, None)
            await self._lost(place)
        while True:
            try:
                await self._gained(sorted(now))
                break
            except OncueError as e:
                self._failed(e)
                await asyncio.sleep(PAUSE_S)
        self.owned |= now

    # ------------------------------------------------------------ how far it is

    def mark(self, place: Partition, end: int) -> None:
        """The group's place is here, soon. Who is not a member any more cannot tell: the next one does the work again."""
        if place in self.owned:
            self._marks[place] = end
            if self._marking is None or self._marking.done():
                self._marking = asyncio.create_task(self._mark_all(), name=f"kafka marks of {self._group}")

    async def _mark_all(self) -> None:
        while self._marks and self._consumer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), MARK_S)
            marks, self._marks = self._marks, {}
            try:
                await self._consumer.commit(
                    {TopicPartition(self._topics.full(t), p): end for (t, p), end in marks.items()}
                )
                self._told(marks)
            except (k.KafkaError, OSError) as e:  # the group decides anew, or its coordinator moves
                logger.info("the group %s could not be told how far its member is: %s", self._group, e)
                self._marks = {p: end for p, end in marks.items() if p in self.owned} | self._marks
                await asyncio.sleep(PAUSE_S)

    async def settle(self) -> None:
        """Until all marks are told; not for long while the group decides anew."""
        if self._marking is not None and not self._marking.done():
            self._hurry.set()
            await asyncio.wait([self._marking], timeout=PAUSE_S)
            self._hurry.clear()

    async def leave(self) -> None:
        """At once, so that others need not wait for the end of the session."""
        await self.settle()
        if self._marking is not None:
            self._marking.cancel()
            await asyncio.gather(self._marking, return_exceptions=True)
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            await asyncio.wait_for(consumer.stop(), self._address.options.session_s)
        except Exception as e:  # then the session ends by itself
            logger.info("a member of the group %s did not leave in order: %s", self._group, e)
        self.owned.clear()
