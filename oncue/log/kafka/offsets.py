"""Begin, end and committed offsets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from aiokafka import errors as k
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from oncue.log.base import Partition
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.topics import KafkaTopic, Topics

BEGIN, END = -2, -1
PATIENCE_S = 30.0  # for a new leader
PAUSE_S = 0.1
VISIBLE_S = 5.0  # for offsets of a transaction to become visible


class Offsets:
    """Queries for offsets."""

    def __init__(self, client: AIOKafkaClient, admin: AIOKafkaAdminClient, topics: Topics, address: Address) -> None:
        self._client, self._admin, self._topics, self._address = client, admin, topics, address
        # Committed here, not yet returned by a broker: transactions become visible a moment later.
        self._unconfirmed: dict[str, dict[Partition, int]] = {}

    def group(self, name: str) -> str:
        return self._address.options.prefix + name

    # ------------------------------------------------------------ of partitions

    async def of(self, names: Iterable[str], which: int) -> dict[Partition, int]:
        """Return BEGIN or END of the existing topics' partitions. Raises LogError."""
        known = [t for t in map(self._topics.get, dict.fromkeys(names)) if t is not None]
        found = await self.at([(t, p) for t in known for p in range(t.count)], which)
        return {(t.name, p): found[t.name, p] for t in known for p in range(t.count)}

    async def at(self, wanted: Iterable[tuple[KafkaTopic, int]], which: int) -> dict[Partition, int]:
        """Return BEGIN or END of partitions.

        Raises LogError if a partition has no leader for 30 s.
        """
        left = {TopicPartition(t.full, p): (t.name, p) for t, p in wanted}
        found: dict[Partition, int] = {}
        end = time.monotonic() + PATIENCE_S
        while left:
            by_node: dict[int, dict[str, list[tuple[int, int]]]] = {}
            for tp in left:
                node = self._client.cluster.leader_for_partition(tp)
                if node is not None and node >= 0:
                    by_node.setdefault(node, {}).setdefault(tp.topic, []).append((tp.partition, which))
            asked = [self._ask(node, topics) for node, topics in by_node.items()]
            error: BaseException = k.LeaderNotAvailableError(next(iter(left)).topic)
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(answer, BaseException):
                    error = answer
                    continue
                for tp, (code, offset) in answer.items():
                    if code:
                        error = k.for_code(code)(tp.topic)
                    else:
                        found[left.pop(tp)] = offset
            if left:
                lasting = not isinstance(error, k.KafkaError | OSError) or not getattr(error, "retriable", True)
                if lasting or time.monotonic() > end:
                    raise explain(error, str(self._address), f"list the offsets of {next(iter(left)).topic}") from None
                await self._client.force_metadata_update()
                await asyncio.sleep(PAUSE_S)
        return found

    async def _ask(self, node: int, topics: dict[str, list[tuple[int, int]]]) -> dict[TopicPartition, tuple[int, int]]:
        # Not read_committed: an open transaction would hide durable records after it.
        response = await self._client.send(node, OffsetRequest(-1, 0, list(topics.items())))
        return {
            TopicPartition(topic, entry[0]): (entry[1], entry[3])
            for topic, entries in response.topics
            for entry in entries
        }

    # ------------------------------------------------------------ of groups

    def record_commit(self, group: str, places: dict[Partition, int]) -> None:
        """Note offsets that this process committed."""
        self._unconfirmed.setdefault(group, {}).update(places)

    async def committed(self, group: str) -> dict[Partition, int]:
        """Return the group's committed offsets in this log.

        Those of an earlier topic of the same name are left out. Raises LogError.
        """
        end = time.monotonic() + VISIBLE_S
        while True:
            stored = await self.fetch(group)
            found = {p: offset for p, (offset, note) in stored.items() if not self._is_of_another(p, note)}
            unconfirmed = self._unconfirmed.get(group, {})
            for place in [p for p, offset in unconfirmed.items() if found.get(p) == offset]:
                del unconfirmed[place]
            if not unconfirmed:
                return found
            if time.monotonic() > end:  # another process has committed since
                self._unconfirmed.pop(group, None)
                return found
            await asyncio.sleep(0.005)

    def _is_of_another(self, place: Partition, note: str) -> bool:
        """Return True if an offset's note names another topic.

        Older versions left no note.
        """
        known = self._topics.note(place[0])
        return bool(known) and len(note) == len(known) and note != known

    async def fetch(self, group: str) -> dict[Partition, tuple[int, str]]:
        """Return (offset, metadata) from the coordinator. Raises LogError."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = await self._admin.list_consumer_group_offsets(self.group(group))
                break
            except (k.KafkaError, OSError) as e:
                # The first group of a cluster has no coordinator at first.
                if not getattr(e, "retriable", True) or time.monotonic() > end:
                    raise explain(e, str(self._address), f"read the committed offsets of the group {group!r}") from e
                await asyncio.sleep(PAUSE_S)
        return {
            (name, tp.partition): (place.offset, place.metadata or "")
            for tp, place in found.items()
            if (name := self._topics.short(tp.topic)) is not None and place.offset >= 0
        }
