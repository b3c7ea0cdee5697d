"""Dividing a topic's partitions among processes: a group's member that reads nothing.

Nobody else is given a partition of this member while the group hears of it: its heartbeats count from when they were sent,
and a group that decides anew waits for this member's word. So `sure` is a matter of this process's own clock. (A clock that
stands still while the process is stopped would lie: the monotonic one goes on.)
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

MARGIN = 0.85  # of the session: clocks of two machines do not go at quite the same pace
PAUSE_S = 1.0


class KafkaShare(Assignment):
    def __init__(
        self, address: Address, topics: Topics, topic: str, group: str, forget: Callable[[KafkaShare], None]
    ) -> None:
        self._address, self._topic, self._forget = address, topic, forget
        # aiokafka keeps what a member has in its assignor's class: so each member has a class.
        self._assignor: type[StickyPartitionAssignor] = type("Sticky", (StickyPartitionAssignor,), {})
        self._member = _Member(address, topics, group, self._assignor, self._settled, self._unsettled, self._fail)
        self._held: frozenset[int] = frozenset()
        self._deciding = True
        self._heard_s = 0.0  # when the last heartbeat that was answered was sent
        self._news = asyncio.Event()
        self._heard = asyncio.Event()
        self._confirming: asyncio.Task[None] | None = None
        self._error: OncueError | None = None
        self._closed = False
        self._joining = asyncio.create_task(self._join(), name=f"share {group}")

    async def _join(self) -> None:
        while True:
            try:
                await self._member.join([self._topic])
                break
            except OncueError as e:
                self._fail(e)
                await asyncio.sleep(PAUSE_S)
        # The coordinator's heartbeats have no listener.
        coordinator = self._member.coordinator
        heartbeat: Callable[[], Awaitable[bool]] = coordinator._do_heartbeat

        async def timed() -> bool:
            sent_s = time.monotonic()
            heard = await heartbeat()
            if heard:
                self._heard_s = sent_s
                self._heard.set()
            return heard

        coordinator._do_heartbeat = timed

    def _settled(self, places: frozenset[int]) -> None:
        self._assignor.on_generation_assignment(self._member.coordinator.generation)
        # Sure from the next heartbeat on: this process may have been stopped before it came to read the group's answer.
        self._held, self._deciding, self._heard_s = places, False, 0.0
        self._heard.clear()
        self._news.set()
        self._confirming = asyncio.create_task(self._confirm(), name="share's first heartbeat")

    async def _confirm(self) -> None:
        """At once, not only when the next heartbeat is due."""
        with contextlib.suppress(k.KafkaError, OSError):  # the next one tells
            await self._member.coordinator._do_heartbeat()

    def _unsettled(self) -> None:
        self._deciding = True
        self._heard.set()  # whoever waits to be sure looks again

    def _fail(self, error: OncueError) -> None:
        self._error = error
        self._news.set()

    async def next(self) -> frozenset[int]:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._closed:
                self._news.set()
                raise LogError("the share is closed")
            if self._error is not None:
                error, self._error = self._error, None
                if not self._deciding:
                    self._news.set()
                raise error
            return self._held

    def sure(self) -> bool:
        silent_s = time.monotonic() - self._heard_s
        return not self._deciding and not self._closed and silent_s < MARGIN * self._address.options.session_s

    async def until_sure(self) -> bool:
        while not self.sure():
            if self._deciding or self._closed or self._news.is_set():
                return False
            self._heard.clear()
            news, heard = asyncio.ensure_future(self._news.wait()), asyncio.ensure_future(self._heard.wait())
            try:
                await asyncio.wait((news, heard), return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel(), heard.cancel()
        return True

    async def close(self) -> None:
        self._closed = True
        self._news.set()
        self._forget(self)
        for task in [t for t in (self._joining, self._confirming) if t is not None]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._member.leave()


class _Member(Membership):
    def __init__(
        self,
        address: Address,
        topics: Topics,
        group: str,
        assignor: type[StickyPartitionAssignor],
        settled: Callable[[frozenset[int]], None],
        unsettled: Callable[[], None],
        failed: Callable[[OncueError], None],
    ) -> None:
        super().__init__(address, topics, group, _nothing, _nothing, failed, lambda marks: None)
        self.assignors = (assignor,)
        self._settled, self._unsettled = settled, unsettled

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._unsettled()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        found = list(assigned)
        self.pause(found)
        self._settled(frozenset(tp.partition for tp in found))


async def _nothing(place: object) -> None:
    pass
