"""KafkaRunner: runs stateful rules with states in `oncue.windows`.

It fulfils the contract in fold.py. Used by a stream worker (faust_app.py) and by a server on a
shared log (server_runner.py).

    oncue.matches ─► enqueue ─► fold ─┬─► closed windows ─► TaskFrames, dead letters ─┐
          ▲                           └─► changes ─► oncue.windows, same partition ───┤
          │                                                                           ▼
          └── Tick, when due or       the table, once durable ◄──── one transaction per step
              an operator is removed

A runner claims a partition before it reads the changelog. From then on the brokers refuse writes of
a former owner that was paused or cut off. So firings, states and the offset in `oncue.matches`
change in one transaction, by one process at a time. Faust's own changelog writes are not awaited
and would lose that: events were counted twice after kills.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from oncue.clocks.process import now_ms, now_us
from oncue.errors import LogError, NotOwner, OncueError
from oncue.log.base import Append, Log, Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Deployment
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.active_rules import ActiveRules
from oncue.rules.evaluation.judge import RuleJudge
from oncue.rules.stateful.changelog_states import CLAIM, TOPIC, ChangelogStates, PartitionClaim, records
from oncue.rules.stateful.firing import Firer, in_force, limits_in_force, retired
from oncue.rules.stateful.record_group import Queue, RecordGroup, WindowSummary
from oncue.rules.stateful.timers import Limits, Retired, Timers
from oncue.rules.task_frames import EndpointDirectory, commit

GROUP = "stream"
STEP = 2_000  # matches folded and stored together
LINGER_S = 0.1  # between steps of a partition: matches meanwhile share a transaction (10 to 30 ms)
MAX_PENDING = 20_000  # matches of a partition that are queued; then `enqueue` waits
RETRY_S = 1.0
REASSIGNMENT_S = 15.0
_log = logging.getLogger(__name__)


class PartitionFence(Protocol):
    """A log that can fence former owners of a partition (Kafka)."""

    async def claim(self, group: str, topic: str, partition: int) -> None: ...


class AssignedPartition:
    """A partition that is assigned to this process."""

    def __init__(self, number: int) -> None:
        self.number, self.table = number, ChangelogStates()
        self.ready = False  # the table is restored
        self.inbox: deque[tuple[int, Record]] = deque()
        self.enqueued = 0  # offset after the last queued match
        self.fresh, self.room = asyncio.Event(), asyncio.Event()
        self.room.set()
        self.work: asyncio.Task[None] | None = None


class KafkaRunner:
    """Runs stateful rules of the claimed partitions: `run` until cancelled.

    For one event loop.
    """

    def __init__(
        self,
        log: Log,
        fence: PartitionFence,
        directory: EndpointDirectory,
        active_rules: Callable[[], ActiveRules],
        worker: str,
        *,
        before_batch: Callable[[], Awaitable[None]] | None = None,
        offload: Callable[[bytes], Awaitable[bytes]] | None = None,
        history: Callable[[str, int], Awaitable[Deployment | None]] | None = None,
        judge: RuleJudge | None = None,
        clock_ms: Callable[[], int] = now_ms,
        for_servers: bool = False,
        step: int = STEP,
    ) -> None:
        """Create a runner without partitions.

        `for_servers`: this process is a server, so the partitions carry the servers' mark.
        """
        self._log, self._fence, self._active_rules, self._worker = log, fence, active_rules, worker
        self._for_servers, self._step = for_servers, step
        self._before_batch, self._clock_ms = before_batch, clock_ms
        self.firer = Firer(directory, active_rules, offload, history, judge)
        self.parts: dict[int, AssignedPartition] = {}
        self._timers = Timers()
        self._moved = asyncio.Event()  # the time of the next due window has changed
        self.events = 0  # matches folded, since the start
        self.fired = asyncio.Event()  # set when something has fired
        # Set when another process has claimed a partition. Usually a rebalance follows.
        self.claim_lost = asyncio.Event()

    def wake(self) -> None:
        """The rules have changed: close windows of removed operators."""
        self._timers.rules_changed.set()

    # ------------------------------------------------------------ partitions that come and go

    async def watch_claims(self) -> None:
        """Watch for partitions that another process has claimed, until cancelled.

        Raises LogError when no rebalance follows.
        """
        while True:
            await self.claim_lost.wait()
            self.claim_lost.clear()
            before = dict(self.parts)
            await asyncio.sleep(REASSIGNMENT_S)
            if any(not part.ready and before.get(n) is part for n, part in self.parts.items()):
                raise LogError(
                    "another process has claimed partitions of this worker and keeps them",
                    remedy="start it again: it then reports the owner",
                )

    async def claim(self, numbers: Iterable[int]) -> None:
        """Claim exactly these partitions; their tables are restored next.

        Raises LogError.
        """
        wanted = set(numbers)
        await self.release(set(self.parts))
        parts = {number: AssignedPartition(number) for number in wanted}
        self.parts = parts
        await asyncio.gather(*[self._claim(number) for number in wanted])

    async def _claim(self, number: int) -> None:
        await self._fence.claim(GROUP, MATCHES, number)
        # Written after all records of former owners, and outside of a transaction, so that a
        # process that restores the table finds its end.
        record = Record(encode(PartitionClaim(VERSION, self._worker, now_us())), encode(CLAIM))
        await self._log.append(WINDOWS, [record], number)

    async def release(self, numbers: Iterable[int]) -> None:
        """Release partitions. Steps in progress complete or are refused."""
        removed = [part for number in numbers if (part := self.parts.pop(number, None)) is not None]
        self._timers.forget(part.number for part in removed)
        for part in removed:
            part.ready = False
            part.room.set()
            if part.work is not None:
                part.work.cancel()
        await asyncio.gather(*[part.work for part in removed if part.work is not None], return_exceptions=True)

    def restore(self, number: int, key: bytes, value: bytes) -> None:
        """Apply a record of the changelog.

        Raises Undecodable: a newer version wrote it.
        """
        part = self.parts.get(number)
        if part is not None and not part.ready:
            part.table.apply_record(key, value)

    def restored(self, number: int, table: ChangelogStates) -> None:
        """Set the table of a partition, restored completely."""
        part = self.parts.get(number)
        if part is not None and not part.ready:
            part.table = table

    async def check(self) -> None:
        """Check that the tables are of these matches, and not behind the group's offsets.

        Faust starts at the group's offsets, which are committed with the tables. Raises LogError:
        the group was moved ahead, and the matches between would be lost.
        """
        now = self._log.topic_id(MATCHES)
        if other := [n for n, part in self.parts.items() if now and part.table.topic not in ("", now)]:
            raise LogError(
                f"the states of the partitions {', '.join(map(str, other))} belong to an earlier topic {MATCHES}",
                remedy=f"stop servers and stream workers, and delete the topic {WINDOWS}: it is made again",
            )
        committed = await self._log.committed(GROUP)
        places = {number: part.table.progress.next for number, part in self.parts.items() if part.table.started}
        ahead = [n for n, following in places.items() if committed.get((MATCHES, n), 0) > following]
        if ahead:
            raise LogError(
                f"the group {GROUP!r} is ahead of what is stored, in the partitions {', '.join(map(str, ahead))} of {MATCHES}",
                remedy="stop the stream workers and delete the group: kafka-consumer-groups.sh --delete --group"
                f" PREFIX{GROUP}; reading then goes on where the states are",
            )

    def ready(self) -> list[int]:
        """Start the restored partitions; return their numbers.

        Raises LogError: servers own some, or some were not read.
        """
        tables = [(part.number, part.table) for part in self.parts.values()]
        if owned := [n for n, table in tables if table.started and table.by_servers is not self._for_servers]:
            raise LogError(
                f"servers have the partitions {', '.join(map(str, owned))}: they run stateful rules themselves",
                remedy='set rules_memory to "stream" for all servers, or leave it to them',
            )
        if missing := [n for n, table in tables if not table.started]:
            raise LogError(
                f"the states of the partitions {', '.join(map(str, missing))} were not read: they changed hands meanwhile",
                remedy="start it again",
            )
        for part in self.parts.values():
            if not part.ready:
                part.table.follow_clock(self._clock_ms())
                part.ready, part.enqueued = True, part.table.progress.next
                self._timers.due_ms[part.number] = part.table.next_due_ms()
                part.work = asyncio.create_task(self._work(part), name=f"windows {part.number}")
        self._timers.rules_changed.set()
        self._moved.set()
        return sorted(self.parts)

    def positions(self) -> dict[int, int]:
        """Return restored partition -> offset of the next match to read."""
        return {number: part.enqueued for number, part in self.parts.items() if part.ready}

    # ------------------------------------------------------------ matches

    async def enqueue(self, number: int, offset: int, record: Record) -> None:
        """Queue a match of the partition, in order. Waits while the queue is full."""
        part = self.parts.get(number)
        if part is None or not part.ready or offset < part.enqueued:
            return  # not assigned any more, or delivered before
        part.enqueued = offset + 1
        part.inbox.append((offset, record))
        part.fresh.set()
        if len(part.inbox) >= MAX_PENDING:
            part.room.clear()
            await part.room.wait()

    async def _work(self, part: AssignedPartition) -> None:
        loop = asyncio.get_running_loop()
        stepped = -LINGER_S
        while True:
            if not part.inbox:
                part.fresh.clear()
                await part.fresh.wait()
            if (early_s := stepped + LINGER_S - loop.time()) > 0 and len(part.inbox) < self._step:
                await asyncio.sleep(early_s)
            stepped = loop.time()
            batch = _batch(part, self._step)
            try:
                await self._retry_until_done(part, [batch])
            except NotOwner as e:
                _log.warning("partition %d is left to another: %s", part.number, e.message)
                part.ready = False
                self._timers.forget([part.number])
                part.inbox.clear()
                part.room.set()
                self.claim_lost.set()
                return
            for _ in batch.offsets:
                part.inbox.popleft()
            part.room.set()

    async def _retry_until_done(self, part: AssignedPartition, batches: Sequence[RecordBatch]) -> None:
        """Call `step` until it succeeds. Raises NotOwner."""
        while True:
            try:
                await self.step(part, batches)
                return
            except NotOwner:
                raise
            except OncueError as e:
                _log.error("stateful rules wait, and are tried again: %s", e)
            except Exception:
                _log.exception("stateful rules failed; they resume from the stored states")
            await asyncio.sleep(RETRY_S)

    async def step(self, part: AssignedPartition, batches: Sequence[RecordBatch]) -> None:
        """Fold, commit firings and states in one transaction, then update the table.

        Raises NotOwner, LogError.
        """
        if self._before_batch is not None:
            await self._before_batch()
        table = part.table
        group, changes = table.fold(batches)
        if (topic := self._log.topic_id(MATCHES)) != table.topic:
            changes.append((TOPIC, encode(topic)))
        fired = await self.firer.fire(group)
        appends = [*fired.appends, Append(WINDOWS, records(changes), part.number)]
        # The commit continues when this is cancelled; the next claim waits for it.
        await commit(self._log, GROUP, batches, appends)
        table.apply(changes)
        self.firer.count(group, fired)
        self.events += sum(len(b.offsets) for b in batches)
        if fired.counted:
            self.fired.set()
        if self.parts.get(part.number) is part:
            self._update_timers(part, group)

    def _update_timers(self, part: AssignedPartition, group: RecordGroup) -> None:
        before = self._timers.due_ms.get(part.number, 0)
        self._timers.applied(part.number, part.table.progress.next, part.table.next_due_ms())
        active_rules = self._active_rules()
        if group.retiring or any(not in_force(active_rules, rule, spec) for rule, spec in group.opened):
            self._timers.rules_changed.set()
        if self._timers.due_ms[part.number] != before:
            self._moved.set()

    # ------------------------------------------------------------ ticks

    async def run(self) -> None:
        """Append ticks until cancelled.

        They are for due windows, and for windows of removed operators.
        """
        while True:
            woken, moved = (asyncio.ensure_future(e.wait()) for e in (self._timers.rules_changed, self._moved))
            next_due_s = self._timers.next_due_s(self._clock_ms())
            try:
                await asyncio.wait({woken, moved}, timeout=next_due_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
                moved.cancel()
            self._moved.clear()
            try:
                await self.tick()
            except OncueError as e:
                _log.error("a tick cannot be appended, and is tried again: %s", e)
                self._timers.rules_changed.set()
                await asyncio.sleep(RETRY_S)

    async def tick(self) -> None:
        now_ms = self._clock_ms()
        removed: Retired = {}
        limits: Limits = {}
        if self._timers.rules_changed.is_set():
            self._timers.rules_changed.clear()
            if self._before_batch is not None:
                await self._before_batch()
            specs = [(p.number, *spec) for p in self.parts.values() if p.ready for spec in p.table.open_specs()]
            removed, limits = retired(self._active_rules(), specs), limits_in_force(self._active_rules(), specs)
        await self._timers.append(self._log, now_ms, removed, limits)

    # ------------------------------------------------------------ queries

    def summary(self) -> dict[str, WindowSummary]:
        """Return rule -> summary of open windows in the assigned partitions."""
        found: dict[str, WindowSummary] = {}
        for part in self.parts.values():
            for rule, more in part.table.summary().items():
                one = found.get(rule, WindowSummary(0, 0, 0))
                due_ms = min(filter(None, (one.due_ms, more.due_ms)), default=0)
                found[rule] = WindowSummary(one.windows + more.windows, one.events + more.events, due_ms)
        return found

    def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]:
        """Return the first firings that wait in the assigned partitions."""
        return [queue for part in self.parts.values() for queue in part.table.queues(rule, limiters)]

    async def close(self) -> None:
        await self.release(set(self.parts))


def _batch(part: AssignedPartition, most: int) -> RecordBatch:
    """Return queued matches for one step, at most `most`."""
    some = [part.inbox[n] for n in range(min(len(part.inbox), most))]
    return RecordBatch(MATCHES, part.number, [offset for offset, _ in some], [record for _, record in some])
