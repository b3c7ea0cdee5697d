"""Group membership that divides a topic's partitions and reads nothing.

The group gives nobody else a partition of this member while it receives heartbeats. Each heartbeat
counts from when it was sent, and a rebalance waits for this member to rejoin. So `is_exclusive`
needs only this process's own clock: the monotonic one, which runs on while the process is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable

from aiokafka import errors as k
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.structs import TopicPartition

from oncue.errors import LogError, OncueError
from oncue.log.base import Assignment
from oncue.log.kafka.address import Address
from oncue.log.kafka.membership import Membership
from oncue.log.kafka.topics import Topics

MARGIN = 0.85  # of the session: the clocks of two machines do not run at quite the same rate
PAUSE_S = 1.0


class KafkaAssignment(Assignment):
    """Partitions that a Kafka consumer group assigns to this process."""

    def __init__(
        self, address: Address, topics: Topics, topic: str, group: str, forget: Callable[[KafkaAssignment], None]
    ) -> None:
        self._address, self._topic, self._forget = address, topic, forget
        # aiokafka keeps a member's assignment in its assignor class: each member needs its own.
        self._assignor: type[StickyPartitionAssignor] = type("Sticky", (StickyPartitionAssignor,), {})
        self._member = _Member(address, topics, group, self._assignor, self._assigned, self._revoked, self._fail)
        self._partitions: frozenset[int] = frozenset()
        self._rebalancing = True
        self._heartbeat_s = 0.0  # when the last answered heartbeat was sent
        self._changed = asyncio.Event()  # for `next`
        self._heartbeat = asyncio.Event()  # for `wait_until_exclusive`
        self._confirming: asyncio.Task[None] | None = None
        self._error: OncueError | None = None
        self._closed = False
        self._joining = asyncio.create_task(self._join(), name=f"join {group}")

    async def _join(self) -> None:
        while True:
            try:
                await self._member.join([self._topic])
                break
            except OncueError as e:
                self._fail(e)
                await asyncio.sleep(PAUSE_S)
        # aiokafka offers no callback for heartbeats.
        coordinator = self._member.coordinator
        heartbeat: Callable[[], Awaitable[bool]] = coordinator._do_heartbeat

        async def timed() -> bool:
            sent_s = time.monotonic()
            answered = await heartbeat()
            if answered:
                self._heartbeat_s = sent_s
                self._heartbeat.set()
            return answered

        coordinator._do_heartbeat = timed

    def _assigned(self, partitions: frozenset[int]) -> None:
        self._assignor.on_generation_assignment(self._member.coordinator.generation)
        # Exclusive from the next heartbeat on: the process may have been stopped before it read
        # the group's answer.
        self._partitions, self._rebalancing, self._heartbeat_s = partitions, False, 0.0
        self._heartbeat.clear()
        self._changed.set()
        self._confirming = asyncio.create_task(self._confirm(), name="first heartbeat")

    async def _confirm(self) -> None:
        """Send a heartbeat now instead of when the next one is due."""
        with contextlib.suppress(k.KafkaError, OSError):  # the next heartbeat finds the same error
            await self._member.coordinator._do_heartbeat()

    def _revoked(self) -> None:
        self._rebalancing = True
        self._heartbeat.set()  # wakes `wait_until_exclusive`

    def _fail(self, error: OncueError) -> None:
        self._error = error
        self._changed.set()

    async def next(self) -> frozenset[int]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._closed:
                self._changed.set()
                raise LogError("this member has left its group")
            if self._error is not None:
                error, self._error = self._error, None
                if not self._rebalancing:
                    self._changed.set()
                raise error
            return self._partitions

    def is_exclusive(self) -> bool:
        silent_s = time.monotonic() - self._heartbeat_s
        return not self._rebalancing and not self._closed and silent_s < MARGIN * self._address.options.session_s

    async def wait_until_exclusive(self) -> bool:
        while not self.is_exclusive():
            if self._rebalancing or self._closed or self._changed.is_set():
                return False
            self._heartbeat.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            heartbeat = asyncio.ensure_future(self._heartbeat.wait())
            try:
                await asyncio.wait((changed, heartbeat), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel(), heartbeat.cancel()
        return True

    async def close(self) -> None:
        self._closed = True
        self._changed.set()
        self._forget(self)
        for task in [t for t in (self._joining, self._confirming) if t is not None]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._member.leave()


class _Member(Membership):
    """Membership that calls back with each assignment and revocation."""

    def __init__(
        self,
        address: Address,
        topics: Topics,
        group: str,
        assignor: type[StickyPartitionAssignor],
        assigned: Callable[[frozenset[int]], None],
        revoked: Callable[[], None],
        failed: Callable[[OncueError], None],
    ) -> None:
        super().__init__(address, topics, group, _nothing, _nothing, failed, lambda marks: None)
        self.assignors = (assignor,)
        self._assigned, self._revoked = assigned, revoked

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._revoked()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        found = list(assigned)
        self.pause(found)
        self._assigned(frozenset(tp.partition for tp in found))


async def _nothing(place: object) -> None:
    pass
