"""Fetches records for all readers of a log, over few connections.

    FetchStates (one per partition and reader) ──► requests, one per connection ──► broker
                                               ◄── decoded batches ──

A broker answers the requests of a connection in order, and a request that waits for records blocks
its connection. So there are several connections per broker, and each request covers the cursors
that no other request covers: a new cursor waits half a second at most. Partitions without records
for a while share a request with a long wait: 2,000 quiet topics cost one request every few seconds,
and do not delay busy ones.

A broker with a waiting request answers it for each single record, which slows down the next append.
So a connection pauses for a moment after a small response. A record after a pause is still
delivered at once. (The connection pauses, not each cursor: cursors would drift apart until each
occupied its own connection, and none was free.)
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import TopicPartition

from oncue.errors import OncueError
from oncue.log.kafka.address import Address
from oncue.log.kafka.decoding import DamagedBatch, Decoded, decode
from oncue.log.kafka.failures import explain
from oncue.log.kafka.fetch_request import INCONSISTENT_TOPIC_ID, UNKNOWN_TOPIC_ID, fetch
from oncue.log.kafka.offsets import BEGIN, END, Offsets
from oncue.log.kafka.topics import KafkaTopic

logger = logging.getLogger(__name__)

CONNECTIONS, QUIET_CONNECTIONS = 4, 2  # per broker, for busy and for quiet partitions
FIRST_CONNECTION = 10  # aiokafka uses lower numbers for its own connections
WAIT_MS, QUIET_WAIT_MS = 500, 5_000
QUIET_S = 5.0
PAUSE_S = 0.1
COMPANY_S, LITTLE_BYTES = 0.003, 64 * 1024  # pause after a small response, to gather records
CURSOR_S = 20e-6  # added per cursor, which costs time in each request, here and at the broker
LATE_S = 10.0  # interval of warnings about failed reads


class FetchTarget(Protocol):
    """Reader, as the fetcher uses it."""

    def is_full(self) -> bool: ...
    def deliver(self, cursor: FetchState, decoded: Decoded) -> None: ...
    def fail(self, error: OncueError) -> None: ...


class FetchState:
    """Fetch position of one partition of a reader.

    `at` is the reader's next offset; `fetch_at` is where the next request begins, lower if `at`
    does not exist yet.
    """

    __slots__ = (
        "at",
        "beyond_since",
        "busy_until",
        "covered",
        "failing_since",
        "fetch_at",
        "generation",
        "late_at",
        "not_before",
        "partition",
        "target",
        "topic",
    )

    def __init__(self, target: FetchTarget, topic: KafkaTopic, partition: int, at: int) -> None:
        self.target, self.topic, self.partition = target, topic, partition
        self.generation = 0  # counts seeks; older requests are stale
        self.covered = False
        self.not_before = self.failing_since = self.late_at = 0.0
        self.place(at)

    def place(self, at: int) -> None:
        self.at = self.fetch_at = at
        self.beyond_since = 0.0  # since when the partition ends before `at`
        self.generation += 1
        self.covered = False
        self.busy_until = time.monotonic() + QUIET_S


class Fetcher:
    """Sends fetch requests and hands their batches to readers."""

    def __init__(
        self,
        client: AIOKafkaClient,
        offsets: Offsets,
        address: Address,
        to_dead_letters: Callable[[KafkaTopic, int, DamagedBatch], None],
        suspect: Callable[[KafkaTopic], None],
    ) -> None:
        """`suspect`: called with a topic that a broker does not know by its id."""
        self._client, self._offsets, self._address = client, offsets, address
        self._to_dead_letters, self._suspect = to_dead_letters, suspect
        self._cursors: dict[FetchState, None] = {}  # in fetch order
        self._busy_connections: dict[int, set[int]] = {}  # node -> connections in use
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting: set[asyncio.Future[bool]] = set()
        self._run_task = asyncio.create_task(self._run(), name="kafka fetcher")

    def add(self, cursor: FetchState) -> None:
        self._cursors[cursor] = None
        self._wake.set()

    def remove(self, cursors: Iterable[FetchState]) -> None:
        for cursor in cursors:
            self._cursors.pop(cursor, None)

    def wake(self) -> None:
        """Check for work: a cursor moved, or a reader has space again."""
        self._wake.set()

    def fetched(self) -> set[KafkaTopic]:
        """Return the topics that a reader fetches by their ids."""
        return {topic for cursor in self._cursors if (topic := cursor.topic).id}

    def late_s(self) -> float:
        """Return for how long the longest failing partition has failed."""
        failing = [cursor.failing_since for cursor in self._cursors if cursor.failing_since]
        return time.monotonic() - min(failing) if failing else 0.0

    def beyond_end(self, seconds: float) -> str:
        """Name a partition that has ended before a reader's position for so long, else "".

        The reader would leave out what is appended there.
        """
        since = time.monotonic() - seconds
        for c in self._cursors:
            if c.beyond_since and c.beyond_since < since:
                return f"{c.topic.full}/{c.partition} ends at {c.fetch_at}, and {c.at} records of it were read"
        return ""

    async def close(self) -> None:
        self._cursors.clear()
        for task in (self._run_task, *self._tasks):
            task.cancel()
        await asyncio.gather(self._run_task, *self._tasks, *self._connecting, return_exceptions=True)

    # ------------------------------------------------------------ scheduling

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = self._send_requests()
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    def _send_requests(self) -> float | None:
        """Send all possible requests; return seconds until a paused cursor is due."""
        now, soonest, lost = time.monotonic(), None, False
        by_node: dict[int, tuple[list[FetchState], list[FetchState]]] = {}
        for cursor in self._cursors:
            if cursor.covered or cursor.topic.gone or cursor.target.is_full():
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
            # If no connection is free for quiet cursors, they join the busy ones.
            if quiet and not self._send(
                node, quiet, QUIET_WAIT_MS, range(CONNECTIONS, CONNECTIONS + QUIET_CONNECTIONS)
            ):
                busy += quiet
            self._send(node, busy, WAIT_MS, range(CONNECTIONS))
        return None if soonest is None else max(0.001, soonest - now)

    def _send(self, node: int, cursors: list[FetchState], wait_ms: int, connections: Iterable[int]) -> bool:
        """Send one request; False if no connection is free: a later one covers these."""
        used = self._busy_connections.setdefault(node, set())
        connection = next((n for n in connections if n not in used), None)
        if connection is None or not cursors:
            return False
        used.add(connection)
        for cursor in cursors:
            cursor.covered = True
        self._spawn(self._fetch(node, connection, cursors, [c.generation for c in cursors], wait_ms))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ one request

    async def _fetch(
        self, node: int, connection: int, cursors: list[FetchState], generations: list[int], wait_ms: int
    ) -> None:
        # A request names a partition once: readers at the same offset share it, others wait.
        asked: dict[tuple[str, int], list[tuple[FetchState, int]]] = {}
        topics: dict[KafkaTopic, list[tuple[int, int]]] = {}
        for cursor, generation in zip(cursors, generations, strict=True):
            sharing = asked.setdefault((cursor.topic.full, cursor.partition), [])
            if not sharing:
                topics.setdefault(cursor.topic, []).append((cursor.partition, cursor.fetch_at))
            elif sharing[0][0].fetch_at != cursor.fetch_at:
                cursor.covered = False
                self._wake.set()
                continue
            sharing.append((cursor, generation))
        try:
            await self._connect(node, FIRST_CONNECTION + connection)
            nbytes = 0
            for part in await fetch(self._client, node, FIRST_CONNECTION + connection, wait_ms, topics):
                nbytes += len(part.records or b"")
                for cursor, generation in asked[part.topic, part.number]:
                    if generation == cursor.generation and cursor in self._cursors:
                        self._answered(cursor, part.error, part.records, part.aborted)
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
            self._busy_connections[node].discard(connection)
            for sharing in asked.values():
                for cursor, generation in sharing:
                    if generation == cursor.generation:
                        cursor.covered = False
                    if cursor in self._cursors:  # round robin
                        self._cursors[cursor] = self._cursors.pop(cursor)
            self._wake.set()

    async def _connect(self, node: int, connection: int) -> None:
        """Connect; not cancellable, because aiokafka would leak the connection."""
        connecting = asyncio.ensure_future(self._client.ready(node, group=connection))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        await asyncio.shield(connecting)

    def _failed(self, cursors: Iterable[FetchState], error: BaseException) -> None:
        for cursor in cursors:
            self._pause(cursor, error)
        self._client.force_metadata_update()

    def _answered(self, cursor: FetchState, code: int, data: bytes | None, aborted: Sequence[tuple[int, int]]) -> None:
        if code in (UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID):
            self._suspect(cursor.topic)
            self._pause(cursor, k.UnknownTopicOrPartitionError())
            self._client.force_metadata_update()
            return
        if code:
            self._refused(cursor, k.for_code(code))
            return
        cursor.failing_since = 0.0
        if not data:
            return
        found = decode(cursor.topic.name, cursor.partition, data, cursor.at, cursor.fetch_at, aborted)
        if found.reached == cursor.fetch_at:
            return
        cursor.fetch_at = found.reached
        cursor.at = max(cursor.at, found.reached)
        if cursor.fetch_at >= cursor.at:
            cursor.beyond_since = 0.0
        cursor.busy_until = time.monotonic() + QUIET_S
        for damaged in found.damaged:
            self._to_dead_letters(cursor.topic, cursor.partition, damaged)
        cursor.target.deliver(cursor, found)

    def _refused(self, cursor: FetchState, error: type[k.KafkaError]) -> None:
        if error is k.OffsetOutOfRangeError:
            cursor.not_before = math.inf
            self._spawn(self._reposition(cursor, cursor.generation))
        elif error.retriable or error.__name__ in ("OffsetNotAvailable", "FencedLeaderEpoch", "UnknownLeaderEpoch"):
            self._pause(cursor, error())
            self._client.force_metadata_update()
        else:
            cursor.not_before = time.monotonic() + 10 * PAUSE_S
            what = f"read {cursor.topic.full}/{cursor.partition} at {cursor.fetch_at}"
            cursor.target.fail(explain(error(), str(self._address), what))

    def _pause(self, cursor: FetchState, error: BaseException) -> None:
        now = time.monotonic()
        cursor.not_before = now + PAUSE_S
        if not cursor.failing_since:
            cursor.failing_since, cursor.late_at = now, now + LATE_S
        elif now > cursor.late_at:
            cursor.late_at = now + LATE_S
            what = f"read {cursor.topic.full}/{cursor.partition}"
            logger.warning("%s", explain(error, str(self._address), what).message)

    async def _reposition(self, cursor: FetchState, generation: int) -> None:
        """Move a cursor whose offset is truncated, or does not exist yet."""
        place = (cursor.topic, cursor.partition)
        key = (cursor.topic.name, cursor.partition)
        try:
            begin, end = (await self._offsets.at([place], BEGIN))[key], (await self._offsets.at([place], END))[key]
        except OncueError as e:
            cursor.target.fail(e)
            begin, end = cursor.fetch_at, cursor.fetch_at
        if generation == cursor.generation:
            if cursor.fetch_at < begin:
                # A reader from the very beginning expects that the oldest are gone. One offset is
                # the marker of a transaction.
                if cursor.at and begin - cursor.fetch_at > 1:
                    missed = "up to %d records of %s/%d were deleted before they were read, from %d on"
                    logger.error(missed, begin - cursor.fetch_at, *key, cursor.fetch_at)
                cursor.fetch_at = begin
                cursor.at = max(cursor.at, begin)
            elif cursor.fetch_at > end:
                waits = "%s/%d ends at %d, and a reader waits for %d: was the topic created anew?"
                logger.warning(waits, *key, end, cursor.fetch_at)
                cursor.fetch_at = end
                cursor.beyond_since = cursor.beyond_since or time.monotonic()
        cursor.not_before = 0.0
        self._wake.set()
