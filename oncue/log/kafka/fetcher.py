"""Fetching for all readers of a log, over few connections.

    Cursors (a partition of a reader each) ──► requests, one a line ──► broker: answers when there is something, or late
                                        ◄── decoded batches ──

A broker answers one request of a connection after another, and a request that waits for records blocks its connection. So
there are some lines a broker, and each request covers the cursors that no other covers: a new cursor waits half a second at
most. Partitions that had nothing for a while share a request that may wait long: 2,000 quiet topics cost one
request each few seconds, and nothing on the way of the busy ones. A broker that has a request at hand answers it for each
single record, and that work stands in the way of the next append: so a line rests for a moment after a small answer. What
comes after a pause is told at once all the same. (The line rests, not its cursors one by one: those would go apart, each on
a line of its own, until no line is free.)
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from oncue.errors import OncueError
from oncue.log.kafka.address import Address
from oncue.log.kafka.decoding import Damaged, Decoded, decode
from oncue.log.kafka.failures import explain
from oncue.log.kafka.offsets import BEGIN, END, Offsets
from oncue.log.kafka.topics import Known

logger = logging.getLogger(__name__)

LINES, QUIET_LINES = 4, 2  # to a broker: for what is busy, and for what is quiet
FIRST_LINE = 10  # aiokafka numbers its own connections to a broker below
ANSWER_BYTES, PARTITION_BYTES = 4 * 1024 * 1024, 1024 * 1024  # one batch always comes, whatever its size
WAIT_MS, QUIET_WAIT_MS = 500, 5_000
QUIET_S = 5.0
PAUSE_S = 0.1
COMPANY_S, LITTLE_BYTES = 0.003, 64 * 1024  # after so little, the line rests: what comes meanwhile is one answer
CURSOR_S = 20e-6  # and longer with many cursors: each takes its time in each request, here and at the broker
READ_COMMITTED = 1
LATE_S = 10.0  # then the log says that it cannot read


class Target(Protocol):
    """A reader, as the fetcher sees it."""

    def full(self) -> bool: ...
    def deliver(self, cursor: Cursor, decoded: Decoded) -> None: ...
    def fail(self, error: OncueError) -> None: ...


class Cursor:
    """`at`: the offset that the reader wants next; `fetch_at`: where the next request begins, lower when `at` is not there
    yet."""

    __slots__ = (
        "at",
        "busy_until",
        "covered",
        "failing_since",
        "fetch_at",
        "late_at",
        "not_before",
        "partition",
        "target",
        "topic",
        "turn",
    )

    def __init__(self, target: Target, topic: Known, partition: int, at: int) -> None:
        self.target, self.topic, self.partition = target, topic, partition
        self.turn = 0  # of seeks: what was asked before one is stale
        self.covered = False
        self.not_before = self.failing_since = self.late_at = 0.0
        self.place(at)

    def place(self, at: int) -> None:
        self.at = self.fetch_at = at
        self.turn += 1
        self.covered = False
        self.busy_until = time.monotonic() + QUIET_S


class Fetcher:
    def __init__(
        self,
        client: AIOKafkaClient,
        offsets: Offsets,
        address: Address,
        bury: Callable[[Known, int, Damaged], None],
    ) -> None:
        self._client, self._offsets, self._address, self._bury = client, offsets, address, bury
        self._cursors: dict[Cursor, None] = {}  # in the order of their turns
        self._lines: dict[int, set[int]] = {}  # node -> lines in use
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting: set[asyncio.Future[bool]] = set()
        self._run_task = asyncio.create_task(self._run(), name="kafka fetcher")

    def add(self, cursor: Cursor) -> None:
        self._cursors[cursor] = None
        self._wake.set()

    def remove(self, cursors: Iterable[Cursor]) -> None:
        for cursor in cursors:
            self._cursors.pop(cursor, None)

    def wake(self) -> None:
        """Some cursor was placed, or its reader has room again."""
        self._wake.set()

    def late_s(self) -> float:
        """For how long nothing could be read of the partition that has failed longest."""
        failing = [cursor.failing_since for cursor in self._cursors if cursor.failing_since]
        return time.monotonic() - min(failing) if failing else 0.0

    async def close(self) -> None:
        self._cursors.clear()
        for task in (self._run_task, *self._tasks):
            task.cancel()
        await asyncio.gather(self._run_task, *self._tasks, *self._connecting, return_exceptions=True)

    # ------------------------------------------------------------ who is asked for what

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = self._ask()
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    def _ask(self) -> float | None:
        """Send what can be sent; how long until something that pauses may go on."""
        now, soonest, lost = time.monotonic(), None, False
        by_node: dict[int, tuple[list[Cursor], list[Cursor]]] = {}
        for cursor in self._cursors:
            if cursor.covered or cursor.target.full():
                continue
            if cursor.not_before > now:
                soonest = min(soonest or cursor.not_before, cursor.not_before)
                continue
            node = self._client.cluster.leader_for_partition(TopicPartition(cursor.topic.full, cursor.partition))
            if node is None or node < 0:
                cursor.not_before = now + PAUSE_S
                soonest, lost = min(soonest or cursor.not_before, cursor.not_before), True
                continue
            by_node.setdefault(node, ([], []))[cursor.busy_until < now].append(cursor)
        if lost:
            self._client.force_metadata_update()
        for node, (busy, quiet) in by_node.items():
            # Without a line for them the quiet ones go with the busy: nobody waits for a request that waits long.
            if quiet and not self._send(node, quiet, QUIET_WAIT_MS, range(LINES, LINES + QUIET_LINES)):
                busy += quiet
            self._send(node, busy, WAIT_MS, range(LINES))
        return None if soonest is None else max(0.001, soonest - now)

    def _send(self, node: int, cursors: list[Cursor], wait_ms: int, lines: Iterable[int]) -> bool:
        """False: none of the lines is free; the next that is takes them along."""
        used = self._lines.setdefault(node, set())
        line = next((n for n in lines if n not in used), None)
        if line is None or not cursors:
            return False
        used.add(line)
        for cursor in cursors:
            cursor.covered = True
        self._spawn(self._fetch(node, line, cursors, [c.turn for c in cursors], wait_ms))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ one request

    async def _fetch(self, node: int, line: int, cursors: list[Cursor], turns: list[int], wait_ms: int) -> None:
        # A request names a partition once: readers that are at the same place share it, another has the next request.
        asked: dict[tuple[str, int], list[tuple[Cursor, int]]] = {}
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for cursor, turn in zip(cursors, turns, strict=True):
            sharing = asked.setdefault((cursor.topic.full, cursor.partition), [])
            if not sharing:
                topics.setdefault(cursor.topic.full, []).append((cursor.partition, cursor.fetch_at, PARTITION_BYTES))
            elif sharing[0][0].fetch_at != cursor.fetch_at:
                cursor.covered = False
                self._wake.set()
                continue
            sharing.append((cursor, turn))
        try:
            request = FetchRequest(wait_ms, 1, ANSWER_BYTES, READ_COMMITTED, list(topics.items()))
            await self._connect(node, FIRST_LINE + line)
            response = await self._client.send(node, request, group=FIRST_LINE + line)
            nbytes = 0
            for full, entries in response.topics:
                for entry in entries:
                    aborted = entry[-2] if len(entry) < 8 else entry[-3]
                    nbytes += len(entry[-1] or b"")
                    for cursor, turn in asked[full, entry[0]]:
                        if turn == cursor.turn and cursor in self._cursors:
                            self._answered(cursor, entry[1], entry[-1], aborted)
            if 0 < nbytes < LITTLE_BYTES:
                await asyncio.sleep(max(COMPANY_S, CURSOR_S * len(cursors)))
        except (k.KafkaError, OSError, TimeoutError) as e:
            self._failed([c for sharing in asked.values() for c, _ in sharing], e)
        except Exception as e:
            logger.exception("an answer of Kafka could not be read")
            for cursor in [c for sharing in asked.values() for c, _ in sharing]:
                cursor.not_before = time.monotonic() + 10 * PAUSE_S
                cursor.target.fail(explain(e, str(self._address), f"read {cursor.topic.full}"))
        finally:
            self._lines[node].discard(line)
            for sharing in asked.values():
                for cursor, turn in sharing:
                    if turn == cursor.turn:
                        cursor.covered = False
                    if cursor in self._cursors:  # to the end of the line: others have their turn
                        self._cursors[cursor] = self._cursors.pop(cursor)
            self._wake.set()

    async def _connect(self, node: int, line: int) -> None:
        """Not to be cut off: aiokafka would forget a connection that is half made, and leave it open."""
        connecting = asyncio.ensure_future(self._client.ready(node, group=line))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        await asyncio.shield(connecting)

    def _failed(self, cursors: Iterable[Cursor], error: BaseException) -> None:
        for cursor in cursors:
            self._pause(cursor, error)
        self._client.force_metadata_update()

    def _answered(self, cursor: Cursor, code: int, data: bytes | None, aborted: list[tuple[int, int]] | None) -> None:
        if code:
            self._refused(cursor, k.for_code(code))
            return
        cursor.failing_since = 0.0
        if not data:
            return
        found = decode(cursor.topic.name, cursor.partition, data, cursor.at, cursor.fetch_at, aborted or ())
        if found.reached == cursor.fetch_at:
            return
        cursor.fetch_at = found.reached
        cursor.at = max(cursor.at, found.reached)
        cursor.busy_until = time.monotonic() + QUIET_S
        for damaged in found.damaged:
            self._bury(cursor.topic, cursor.partition, damaged)
        cursor.target.deliver(cursor, found)

    def _refused(self, cursor: Cursor, error: type[k.KafkaError]) -> None:
        if error is k.OffsetOutOfRangeError:
            cursor.not_before = math.inf
            self._spawn(self._reposition(cursor, cursor.turn))
        elif error.retriable or error.__name__ in ("OffsetNotAvailable", "FencedLeaderEpoch", "UnknownLeaderEpoch"):
            self._pause(cursor, error())
            self._client.force_metadata_update()
        else:
            cursor.not_before = time.monotonic() + 10 * PAUSE_S
            what = f"read {cursor.topic.full}/{cursor.partition} at {cursor.fetch_at}"
            cursor.target.fail(explain(error(), str(self._address), what))

    def _pause(self, cursor: Cursor, error: BaseException) -> None:
        now = time.monotonic()
        cursor.not_before = now + PAUSE_S
        if not cursor.failing_since:
            cursor.failing_since, cursor.late_at = now, now + LATE_S
        elif now > cursor.late_at:
            cursor.late_at = now + LATE_S
            what = f"read {cursor.topic.full}/{cursor.partition}"
            logger.warning("%s", explain(error, str(self._address), what).message)

    async def _reposition(self, cursor: Cursor, turn: int) -> None:
        """Its offset is not there: truncated, or not there yet."""
        place = (cursor.topic, cursor.partition)
        key = (cursor.topic.name, cursor.partition)
        try:
            begin, end = (await self._offsets.at([place], BEGIN))[key], (await self._offsets.at([place], END))[key]
        except OncueError as e:
            cursor.target.fail(e)
            begin, end = cursor.fetch_at, cursor.fetch_at
        if turn == cursor.turn:
            if cursor.fetch_at < begin:
                cursor.fetch_at = begin
                cursor.at = max(cursor.at, begin)
            elif cursor.fetch_at > end:
                waits = "%s/%d ends at %d, and a reader waits for %d: was the topic made anew?"
                logger.warning(waits, *key, end, cursor.fetch_at)
                cursor.fetch_at = end
        cursor.not_before = 0.0
        self._wake.set()
