"""Log on Kafka, composed of the parts of this package."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from aiokafka import errors as k
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import TopicPartition

from oncue.config import Settings
from oncue.errors import LogError, NotOwner, OncueError
from oncue.log.base import (
    OPEN_AGAIN,
    Append,
    Assignment,
    Log,
    Partition,
    Position,
    Reader,
    Record,
    RecordBatch,
    Start,
    Topic,
)
from oncue.log.kafka.address import Address, parse_address
from oncue.log.kafka.assignment import KafkaAssignment
from oncue.log.kafka.dead_letters import DeadLetterWriter
from oncue.log.kafka.failures import explain, quiet
from oncue.log.kafka.fetcher import Fetcher
from oncue.log.kafka.membership import Membership
from oncue.log.kafka.offsets import BEGIN, END, Offsets
from oncue.log.kafka.producer_ids import ProducerIds
from oncue.log.kafka.reader import KafkaReader, membership_callbacks
from oncue.log.kafka.topic_watch import TopicWatch
from oncue.log.kafka.topics import KafkaTopic, Topics
from oncue.log.kafka.transactions import Transactions
from oncue.log.kafka.writer import KafkaCounters, KafkaWriter, PartitionedRecords, partition_records

logger = logging.getLogger(__name__)

# Longer than a change of leaders takes, and than quiet partitions (5 s) need to recover.
TROUBLE_S = 8.0
BY = "oncue-by"  # header: id of the process that appended the record
Callback = Callable[[str, Sequence[Record]], None]


class KafkaLog(Log):
    """Log on a Kafka cluster, shared by any number of processes."""

    # Only each partition keeps the order of appends: another's may be durable earlier.
    fifo = False
    shared = True

    def __init__(self, address: Address, client: AIOKafkaClient, admin: AIOKafkaAdminClient) -> None:
        """Use `open`."""
        self._address, self._client, self._admin = address, client, admin
        self._topics = Topics(client, admin, address)
        self._topics.on_partitions_added = self._partitions_added
        self._offsets = Offsets(client, admin, self._topics, address)
        self._transactions = Transactions(address, ProducerIds(client))
        self._writer = KafkaWriter(address, self._publish)
        self._dead_letters = DeadLetterWriter(self._topics, self._offsets, self._transactions, self._partition_records)
        self._fetcher = Fetcher(
            client, self._offsets, address, self._dead_letters.add, lambda t: self._topic_watch.suspect(t)
        )
        self._topic_watch = TopicWatch(
            client, self._topics, self._fetcher.fetched, lambda: self._fetcher.beyond_end(TROUBLE_S)
        )
        self._watches: list[tuple[str, Callback]] = []
        self._readers: set[KafkaReader] = set()
        self._assignments: set[KafkaAssignment] = set()
        self._own_header = ((BY, secrets.token_bytes(8)),)
        self._unknown_topics: dict[str, list[tuple[Sequence[Record], int | None, asyncio.Future[list[Position]]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, rest: str, settings: Settings) -> KafkaLog:
        """`rest` is what follows kafka:// in the URL. Raises Invalid, LogError."""
        address = parse_address(rest, settings)
        quiet()
        options = {**address.client, "client_id": "oncue", "metadata_max_age_ms": 30_000}
        client, admin = AIOKafkaClient(**options), AIOKafkaAdminClient(**options)
        # Wait for both: a client closed while it connects leaves its connection open.
        started = await asyncio.gather(client.bootstrap(), admin.start(), return_exceptions=True)
        if (error := next((e for e in started if e is not None), None)) is not None:
            await asyncio.gather(client.close(), admin.close(), return_exceptions=True)
            if isinstance(error, k.KafkaError | OSError):
                raise explain(error, str(address), "be reached") from error
            raise error
        log = cls(address, client, admin)
        try:
            cluster = (await admin.describe_cluster()).get("cluster_id")
            log.identity = f"kafka {cluster} {address.options.prefix}".strip()
            await log._topics.load()
            await log._writer.start()
        except BaseException:
            await log.close()
            raise
        return log

    # ------------------------------------------------------------ metrics

    @property
    def counters(self) -> KafkaCounters:
        return self._writer.counters

    @property
    def queue_depth(self) -> int:
        """Number of appends that are queued or in flight."""
        return self._writer.depth + sum(map(len, self._unknown_topics.values()))

    # ------------------------------------------------------------ topics

    async def ensure(self, topics: Mapping[str, Topic]) -> None:
        self._check()
        await self._topics.ensure(topics)

    async def topics(self) -> dict[str, Topic]:
        self._check()
        return await self._topics.all()

    def _partitions_added(self, topic: KafkaTopic, before: int) -> None:
        for reader in self._readers:
            reader.partitions_added(topic, before)

    # ------------------------------------------------------------ writing

    def append(
        self, topic: str, records: Sequence[Record], partition: int | None = None
    ) -> asyncio.Future[list[Position]]:
        future: asyncio.Future[list[Position]] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(LogError("the log is closed"))
            return future
        if not records:
            future.set_result([])
            return future
        known = self._topics.get(topic)
        if known is not None and topic not in self._unknown_topics:
            self._enqueue(known, records, partition, future)
            return future
        # Appends to a topic that is not known yet wait, in order.
        waiting = self._unknown_topics.get(topic)
        if waiting is None:
            waiting = self._unknown_topics[topic] = []
            self._run(self._enqueue_when_known(topic))
        waiting.append((tuple(records), partition, future))
        return future

    def _enqueue(
        self,
        topic: KafkaTopic,
        records: Sequence[Record],
        partition: int | None,
        future: asyncio.Future[list[Position]],
    ) -> None:
        try:
            self._writer.enqueue(topic, self._partition_records(topic, records, partition), future)
        except OncueError as e:
            future.set_exception(e)

    def _partition_records(
        self, topic: KafkaTopic, records: Sequence[Record], partition: int | None
    ) -> PartitionedRecords:
        try:
            if any(topic.name.startswith(prefix) for prefix, _ in self._watches):
                records = [msgspec.structs.replace(r, headers=(*r.headers, *self._own_header)) for r in records]
            return partition_records(topic, records, partition, self._address.record_bytes)
        except (TypeError, AttributeError) as e:
            raise LogError(f"a record for {topic.name!r} is not bytes: {e}") from e

    async def _enqueue_when_known(self, name: str) -> None:
        try:
            topic = await self._topics.get_or_create(name)
        except OncueError as e:
            for _, _, future in self._unknown_topics.pop(name):
                if not future.done():
                    future.set_exception(e)
            return
        for records, partition, future in self._unknown_topics.pop(name):
            if not future.done():
                self._enqueue(topic, records, partition, future)

    async def commit(
        self, group: str, batches: Sequence[RecordBatch], appends: Sequence[Append] = (), *, repeatable: bool = False
    ) -> list[Position]:
        self._check()
        if not batches and not any(a.records for a in appends):
            await self._flush()
            return []
        if batches and (lost := self.lost()):
            raise LogError(f"nothing is committed: {lost}", remedy=OPEN_AGAIN)
        ends: dict[Partition, int] = {(b.topic, b.partition): b.next_offset for b in batches}
        if len(ends) > 1:
            raise LogError(
                f"a commit for the group {group!r} has batches of {len(ends)} partitions",
                remedy="commit the batches of one call of the group's reader: they are of one partition",
            )
        place, owner = next(iter(ends), None), None
        if place is not None:
            owner = self._owner(group, place, min(b.offsets[0] if b.offsets else b.end for b in batches))
            if owner is not None:
                if repeatable:
                    return await self._append_then_commit(owner, place, ends[place], appends)
                # An earlier offset must not be committed after this one.
                await owner.flush_commits()
        found: list[tuple[KafkaTopic, PartitionedRecords]] = []
        for append in appends:
            if append.records:
                topic = await self._topics.get_or_create(append.topic)
                found.append((topic, self._partition_records(topic, append.records, append.partition)))
        if place is not None and owner is None and self._transactions.fenced(group, place):
            # Partitions are assigned by the caller, not by the group: it owns this one again.
            await self._transactions.claim(group, place)
        offsets = {TopicPartition(self._topics.full(t), p): (end, self._topics.note(t)) for (t, p), end in ends.items()}
        positions = await self._transactions.commit(group, place, offsets, found)
        self._offsets.record_commit(group, ends)
        if place is not None and owner is not None:
            owner.advance(place, ends[place])
        for topic, spread in found:
            for _, records in spread:
                self._publish(topic, records)
        return positions

    async def claim(self, group: str, topic: str, partition: int) -> None:
        """Become the only committer of a partition; fence the previous one.

        For a group whose partitions are assigned outside of Kafka. Raises LogError.
        """
        self._check()
        await self._transactions.claim(group, (topic, partition))

    def _owner(self, group: str, place: Partition, first: int) -> KafkaReader | None:
        """Return the reader that owns the partition.

        None if the group has no reader in this process.
        Raises NotOwner.
        """
        members = [r for r in self._readers if r.group == group]
        found = next((r for r in members if r.owns(place, first)), None)
        if members and found is None:
            raise NotOwner(f"the group {group!r} has given {place[0]}/{place[1]} to another server")
        return found

    async def _append_then_commit(
        self, owner: KafkaReader, place: Partition, end: int, appends: Sequence[Append]
    ) -> list[Position]:
        """Append, then commit the offset soon: ten times as fast as a transaction."""
        wanted = [self.append(a.topic, a.records, a.partition) for a in appends if a.records]
        positions = [p for found in await asyncio.gather(*wanted) for p in found]
        owner.advance(place, end)
        owner.commit_later(place, end)
        return positions

    async def _flush(self) -> None:
        while self._unknown_topics:
            await asyncio.wait([future for waiting in self._unknown_topics.values() for _, _, future in waiting])
        await self._writer.flush()

    def _publish(self, topic: KafkaTopic, records: Sequence[Record]) -> None:
        for prefix, callback in list(self._watches):
            if topic.name.startswith(prefix):
                try:
                    callback(topic.name, records)
                except Exception:  # other watchers must be called all the same
                    logger.exception("a watcher of %s failed", topic.name)

    # ------------------------------------------------------------ reading

    def read(self, topics: Iterable[str], *, group: str | None = None, start: Start = "committed") -> Reader:
        self._check()
        reader = KafkaReader(topics, self._topics, self._fetcher, self._offsets, self._readers.discard)
        self._readers.add(reader)
        if group is not None and start == "committed":
            gained, lost = membership_callbacks(reader, group, self._offsets, self._transactions)
            committed = partial(self._offsets.record_commit, group)
            membership = Membership(self._address, self._topics, group, gained, lost, reader.fail, committed)
            reader.begin_in_group(group, membership)
        else:
            reader.begin_at(start, group)
        return reader

    def watch(
        self, prefix: str, callback: Callable[[str, Sequence[Record]], None], *, early: bool = False
    ) -> Callable[[], None]:
        if early:
            raise LogError("this log has no early watchers", remedy="check `fifo` first")
        entry = (prefix, callback)
        self._watches.append(entry)

        def end() -> None:
            if entry in self._watches:
                self._watches.remove(entry)

        return end

    def trouble(self) -> str:
        late_s = max(self._writer.late_s(), self._fetcher.late_s())
        late = f"Kafka at {self._address} has not answered for {late_s:.0f} s" if late_s > TROUBLE_S else ""
        return self.lost() or late

    def lost(self) -> str:
        """Return why this process must open the log again, else ""."""
        return self._topic_watch.lost

    def topic_id(self, topic: str) -> str:
        return self._topics.note(topic)

    def is_own(self, record: Record) -> bool:
        """True if the record has this process's header, set in watched topics only."""
        return self._own_header[0] in record.headers

    def join_group(self, topic: str, group: str) -> Assignment:
        self._check()
        assignment = KafkaAssignment(self._address, self._topics, topic, group, self._assignments.discard)
        self._assignments.add(assignment)
        return assignment

    # ------------------------------------------------------------ offsets

    async def end_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        self._check()
        return await self._offsets.of(topics, END)

    async def begin_offsets(self, topics: Iterable[str]) -> dict[Partition, int]:
        self._check()
        return await self._offsets.of(topics, BEGIN)

    async def committed(self, group: str) -> dict[Partition, int]:
        self._check()
        await asyncio.gather(*[r.flush_commits() for r in self._readers if r.group == group])
        return await self._offsets.committed(group)

    async def lag(self, group: str, topics: Iterable[str]) -> dict[Partition, int]:
        """As in Log; compacted offsets and transaction markers count as records."""
        names = list(topics)
        ends, begins, done = await asyncio.gather(
            self.end_offsets(names), self.begin_offsets(names), self.committed(group)
        )
        return {place: max(0, end - max(done.get(place, 0), begins[place])) for place, end in ends.items()}

    # ------------------------------------------------------------ space

    async def truncate(self, topic: str, partition: int, before: int) -> None:
        self._check()
        known = self._topics.get(topic)
        if known is None or not 0 <= partition < known.count:
            raise LogError(f"there is no partition {topic}/{partition}")
        place = [(known, partition)]
        begin, end = await asyncio.gather(self._offsets.at(place, BEGIN), self._offsets.at(place, END))
        cut = min(before, end[topic, partition])
        if cut <= begin[topic, partition]:
            return
        try:
            await self._admin.delete_records({TopicPartition(known.full, partition): RecordsToDelete(cut)})
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), f"truncate {known.full}/{partition}") from e

    async def housekeep(
        self, now_ms: int | None = None, needed_from_ms: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """No-op: the brokers apply the topics' settings."""
        self._check()
        return {}

    # ------------------------------------------------------------ closing

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check(self) -> None:
        if self._closed:
            raise LogError("the log is closed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        started = time.monotonic()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.close()
        readers = list(self._readers)
        for reader in readers:
            reader.end("the log is closed")
        assignments = list(self._assignments)
        await asyncio.gather(*[r.close() for r in readers], *[a.close() for a in assignments], return_exceptions=True)
        await self._dead_letters.close()
        await self._topic_watch.close()
        await self._fetcher.close()
        await self._transactions.close()
        await self._topics.close()
        await asyncio.gather(self._client.close(), self._admin.close(), return_exceptions=True)
        logger.debug("closed in %.2f s", time.monotonic() - started)
