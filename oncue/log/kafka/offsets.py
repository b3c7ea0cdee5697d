"""Where partitions begin and end, and what groups have committed."""

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
from oncue.log.kafka.topics import Known, Topics

BEGIN, END = -2, -1
PATIENCE_S = 30.0  # for a leader to be there again
PAUSE_S = 0.1
SETTLE_S = 5.0  # for an offset that a transaction committed to be seen


class Offsets:
    def __init__(self, client: AIOKafkaClient, admin: AIOKafkaAdminClient, topics: Topics, address: Address) -> None:
        self._client, self._admin, self._topics, self._address = client, admin, topics, address
        # What was committed here and not seen in an answer yet: the broker tells of a transaction a moment later.
        self._fresh: dict[str, dict[Partition, int]] = {}

    def group(self, name: str) -> str:
        return self._address.options.prefix + name

    # ------------------------------------------------------------ of partitions

    async def of(self, names: Iterable[str], which: int) -> dict[Partition, int]:
        """BEGIN or END of all partitions of those topics that there are. Raises LogError."""
        known = [t for t in map(self._topics.get, dict.fromkeys(names)) if t is not None]
        found = await self.at([(t, p) for t in known for p in range(t.count)], which)
        return {(t.name, p): found[t.name, p] for t in known for p in range(t.count)}

    async def at(self, wanted: Iterable[tuple[Known, int]], which: int) -> dict[Partition, int]:
        """Raises LogError when a partition has no leader for 30 s."""
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
                    raise explain(error, str(self._address), f"tell the offsets of {next(iter(left)).topic}") from None
                await self._client.force_metadata_update()
                await asyncio.sleep(PAUSE_S)
        return found

    async def _ask(self, node: int, topics: dict[str, list[tuple[int, int]]]) -> dict[TopicPartition, tuple[int, int]]:
        # Not read_committed: a transaction that is open would hide records behind it that are durable.
        response = await self._client.send(node, OffsetRequest(-1, 0, list(topics.items())))
        return {
            TopicPartition(topic, entry[0]): (entry[1], entry[3])
            for topic, entries in response.topics
            for entry in entries
        }

    # ------------------------------------------------------------ of groups

    def note(self, group: str, places: dict[Partition, int]) -> None:
        """Committed here."""
        self._fresh.setdefault(group, {}).update(places)

    async def committed(self, group: str) -> dict[Partition, int]:
        """Of the topics of this log. Raises LogError."""
        end = time.monotonic() + SETTLE_S
        while True:
            found = {place: offset for place, (offset, _) in (await self.fetch(group)).items()}
            fresh = self._fresh.get(group, {})
            for place in [p for p, offset in fresh.items() if found.get(p) == offset]:
                del fresh[place]
            if not fresh:
                return found
            if time.monotonic() > end:  # another process has committed since
                self._fresh.pop(group, None)
                return found
            await asyncio.sleep(0.005)

    async def fetch(self, group: str) -> dict[Partition, tuple[int, str]]:
        """(offset, note) as the coordinator tells. Raises LogError."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = await self._admin.list_consumer_group_offsets(self.group(group))
                break
            except (k.KafkaError, OSError) as e:
                # The first group of a cluster has no coordinator for a moment.
                if not getattr(e, "retriable", True) or time.monotonic() > end:
                    raise explain(e, str(self._address), f"tell what the group {group!r} committed") from e
                await asyncio.sleep(PAUSE_S)
        return {
            (name, tp.partition): (place.offset, place.metadata or "")
            for tp, place in found.items()
            if (name := self._topics.short(tp.topic)) is not None and place.offset >= 0
        }
