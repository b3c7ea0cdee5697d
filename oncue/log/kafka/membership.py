"""Membership in a consumer group, without fetching.

After a rebalance each assigned partition is claimed, so that its previous owner cannot commit any
more, and read from the committed offset. A partition that was assigned here before, and committed
by nobody else since, continues with its batches in flight. A partition that was revoked is dropped.
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
COMMIT_S = 0.05  # between two commits of offsets
NO_LIMIT_MS = 2**31 - 1


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """This process's member of a group."""

    def __init__(
        self,
        address: Address,
        topics: Topics,
        group: str,
        gained: Gained,
        lost: Lost,
        failed: Callable[[OncueError], None],
        committed: Callable[[dict[Partition, int]], None],
    ) -> None:
        self._address, self._topics, self._group = address, topics, group
        self._gained, self._lost, self._failed, self._committed = gained, lost, failed, committed
        self.owned: set[Partition] = set()
        self.assignors: tuple[type[AbstractPartitionAssignor], ...] = (RoundRobinPartitionAssignor,)
        self._consumer: AIOKafkaConsumer | None = None
        self._pending: dict[Partition, int] = {}  # offsets to commit
        self._committing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def join(self, names: Iterable[str]) -> None:
        """Join the group, with subscriptions to these topics. Raises LogError."""
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
            max_poll_interval_ms=NO_LIMIT_MS,  # batches may take any time
            metadata_max_age_ms=30_000,
            fetch_max_bytes=1,
            max_partition_fetch_bytes=1,
        )
        try:
            await consumer.start()
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), f"join the group {self._group!r}") from e
        consumer.subscribe([self._topics.full(name) for name in names], listener=self)

    @property
    def coordinator(self) -> Any:
        """aiokafka's coordinator; requires `join`."""
        assert self._consumer is not None
        return self._consumer._coordinator

    def pause(self, places: Iterable[TopicPartition]) -> None:
        """Disable fetching of these partitions."""
        assert self._consumer is not None
        self._consumer.pause(*places)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Continue: nobody else owns them until the group has rebalanced."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.pause(assigned)
        now = {(name, tp.partition) for tp in assigned if (name := self._topics.short(tp.topic)) is not None}
        for place in self.owned - now:
            self.owned.discard(place)
            self._pending.pop(place, None)
            await self._lost(place)
        while True:
            try:
                await self._gained(sorted(now))
                break
            except OncueError as e:
                self._failed(e)
                await asyncio.sleep(PAUSE_S)
        self.owned |= now

    # ------------------------------------------------------------ commits

    def commit_later(self, place: Partition, end: int) -> None:
        """Commit an offset soon.

        A process that is not a member any more cannot commit: the next owner repeats the work.
        """
        if place in self.owned:
            self._pending[place] = end
            if self._committing is None or self._committing.done():
                self._committing = asyncio.create_task(self._commit_all(), name=f"kafka commits of {self._group}")

    async def _commit_all(self) -> None:
        while self._pending and self._consumer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), COMMIT_S)
            offsets, self._pending = self._pending, {}
            try:
                await self._consumer.commit(
                    {
                        TopicPartition(self._topics.full(t), p): (end, self._topics.note(t))
                        for (t, p), end in offsets.items()
                    }
                )
                self._committed(offsets)
            except (k.KafkaError, OSError) as e:  # rebalance, or the coordinator moves
                logger.info("offsets of the group %s could not be committed: %s", self._group, e)
                self._pending = {p: end for p, end in offsets.items() if p in self.owned} | self._pending
                await asyncio.sleep(PAUSE_S)

    async def flush_commits(self) -> None:
        """Wait until pending offsets are committed; at most PAUSE_S."""
        if self._committing is not None and not self._committing.done():
            self._hurry.set()
            await asyncio.wait([self._committing], timeout=PAUSE_S)
            self._hurry.clear()

    async def leave(self) -> None:
        """Leave the group, so that others need not wait for the session timeout."""
        await self.flush_commits()
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            await asyncio.wait_for(consumer.stop(), self._address.options.session_s)
        except Exception as e:  # the session then times out
            logger.info("leaving the group %s failed: %s", self._group, e)
        self.owned.clear()
