"""Topics of this log on the cluster: lists, creates and reconfigures them.

All queries use one client's metadata. A topic created here is requested by name at once, because a
client refreshes its metadata only after minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import errors as k
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from oncue.errors import LogError, OncueError
from oncue.log.base import Topic
from oncue.log.kafka.address import Address
from oncue.log.kafka.failures import explain
from oncue.log.kafka.topic_ids import topic_ids

logger = logging.getLogger(__name__)

OURS = "oncue."  # without a prefix, only topics that start with this belong to oncue
CHUNK = 100  # topics per request
READY_S = 30.0
SEEN_S, PAUSE_S = 10.0, 0.05  # until all brokers know a new topic; between two requests
HOUR_MS, WEEK_MS = 3_600_000, 7 * 86_400_000
NAMES = ("retention.ms", "retention.bytes", "cleanup.policy", "max.message.bytes", "min.insync.replicas")
LATEST = -1  # to ask for a partition's end
DYNAMIC = 1  # config_source of settings of the topic itself


class KafkaTopic:
    """An existing topic."""

    __slots__ = ("compact", "count", "full", "gone", "id", "name", "settings")

    def __init__(self, name: str, full: str, settings: Topic) -> None:
        self.name, self.full = name, full
        self.id = b""  # b"": not known, or the brokers know none
        self.gone = False  # another topic has its name now, or none
        self.set_settings(settings)

    def set_settings(self, settings: Topic) -> None:
        self.settings, self.count, self.compact = settings, settings.partitions, settings.compact


class Topics:
    """All topics of the log, by name without the prefix."""

    def __init__(self, client: AIOKafkaClient, admin: AIOKafkaAdminClient, address: Address) -> None:
        self._client, self._admin, self._address = client, admin, address
        self._prefix = address.options.prefix
        self._known: dict[str, KafkaTopic] = {}
        self._wanted: dict[str, asyncio.Future[KafkaTopic]] = {}
        self._settings: dict[str, Topic] = {}  # of those in `_wanted`
        self._making: asyncio.Task[None] | None = None
        self._required: set[str] = set()
        self.on_partitions_added: Callable[[KafkaTopic, int], None] = lambda known, before: None

    def full(self, name: str) -> str:
        return self._prefix + name

    def short(self, full: str) -> str | None:
        """Return the name without prefix; None if the topic is not of this log."""
        if not full.startswith(self._prefix or OURS) and full not in self._known:
            return None
        return full[len(self._prefix) :]

    def get(self, name: str) -> KafkaTopic | None:
        return self._known.get(name)

    def note(self, name: str) -> str:
        """Return the topic's id for the notes of committed offsets, or ""."""
        known = self._known.get(name)
        return known.id.hex() if known is not None else ""

    def required(self) -> list[KafkaTopic]:
        """Return topics that were ensured, and those without a known id."""
        return [t for t in self._known.values() if t.name in self._required or not t.id]

    # ------------------------------------------------------------ existing topics

    async def load(self) -> None:
        """Read all topics of the log. Raises LogError."""
        await self._refresh()
        self._client.cluster.add_listener(self._on_metadata)

    async def _subscribe(self) -> None:
        if self._known:
            await self._client.set_topics({known.full for known in self._known.values()})

    def _update(self, name: str, settings: Topic, id_: bytes = b"") -> KafkaTopic:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = KafkaTopic(name, self.full(name), settings)
            known.id = id_
        else:
            before = known.count
            known.set_settings(settings)
            if known.count > before:
                self.on_partitions_added(known, before)
        return known

    def _on_metadata(self, cluster: Any) -> None:
        """Handle partitions that another process added."""
        for known in self._known.values():
            count = len(cluster.partitions_for_topic(known.full) or ())
            if count > known.count:
                self._update(known.name, _with(known.settings, count))

    async def _described(self, fulls: Iterable[str]) -> dict[str, dict[str, tuple[str, int]]]:
        """Return topic -> setting -> (value, source)."""
        found: dict[str, dict[str, tuple[str, int]]] = {}
        names = list(fulls)
        end = asyncio.get_running_loop().time() + SEEN_S
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            while True:
                try:
                    found |= await self._describe(chunk)
                    break
                except k.UnknownTopicOrPartitionError:
                    # Another broker created it; this one does not know it yet.
                    if asyncio.get_running_loop().time() > end:
                        raise
                await asyncio.sleep(PAUSE_S)
        return found

    async def _describe(self, fulls: Sequence[str]) -> dict[str, dict[str, tuple[str, int]]]:
        found: dict[str, dict[str, tuple[str, int]]] = {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, full, dict.fromkeys(NAMES)) for full in fulls]
        for response in await self._admin.describe_configs(resources):
            for code, message, _, full, entries in response.resources:
                if code:
                    raise k.for_code(code)(message or full)
                found[full] = {e[0]: (e[1], e[3]) for e in entries}
        return found

    # ------------------------------------------------------------ creation

    async def get_or_create(self, name: str, settings: Topic | None = None) -> KafkaTopic:
        """Return a topic, created with these settings if missing. Raises LogError.

        Concurrent calls share their requests.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        future = self._wanted.get(name)
        if future is None:
            future = self._wanted[name] = asyncio.get_running_loop().create_future()
            self._settings[name] = settings or Topic()
            if self._making is None:
                self._making = asyncio.create_task(self._make(), name="kafka topics")
        return await asyncio.shield(future)

    async def _make(self) -> None:
        await asyncio.sleep(0)  # collect calls of the same loop iteration
        while self._wanted:
            names = list(self._wanted)[:CHUNK]
            wanted = {name: self._settings.pop(name) for name in names}
            try:
                failed = await self._create(wanted)
            except Exception as e:
                why = explain(e, str(self._address), f"make the topic {names[0]!r}")
                failed = dict.fromkeys(names, why)
            for name in names:
                future = self._wanted.pop(name)
                if name in failed:
                    future.set_exception(failed[name])
                    future.exception()  # its callers may have been cancelled
                else:
                    future.set_result(self._known[name])
        self._making = None

    async def _create(self, wanted: Mapping[str, Topic]) -> dict[str, OncueError]:
        copies = self._address.options.replication
        if copies < 1:
            copies = min(3, len(self._client.cluster.brokers()))
        new = [
            NewTopic(self.full(name), t.partitions, copies, topic_configs=self._new_configs(t, copies))
            for name, t in wanted.items()
        ]
        failed: dict[str, OncueError] = {}
        exist: list[str] = []
        response = await self._admin.create_topics(new)
        for full, code, message in response.topic_errors:
            error = k.for_code(code)
            name = full[len(self._prefix) :]
            if error is k.TopicAlreadyExistsError:
                exist.append(full)
            elif error is not k.NoError:
                failed[name] = explain(error(message or full), str(self._address), f"make the topic {full!r}")
        made = {name: t for name, t in wanted.items() if name not in failed}
        await self._client.set_topics({self.full(n) for n in (*self._known, *made)})
        await self._wait_for_leaders([self.full(name) for name in made])
        configs = await self._described(exist)
        ids = await topic_ids(self._client, map(self.full, made))
        for name, settings in made.items():
            full = self.full(name)
            count = len(self._client.cluster.partitions_for_topic(full))
            self._update(name, _topic(count, configs[full]) if full in configs else settings, ids.get(full, b""))
        return failed

    def _new_configs(self, topic: Topic, copies: int) -> dict[str, str]:
        found = configs_of(topic) | {
            "max.message.bytes": str(largest(self._address.record_bytes)),
            # Records keep the time given by their producer.
            "message.timestamp.after.max.ms": str(2**63 - 1),
            "unclean.leader.election.enable": "false",
        }
        # Retention and compaction work on whole segments: close them by time in quiet topics.
        if topic.retention_ms or topic.compact:
            keep = topic.retention_ms or WEEK_MS
            found["segment.ms"] = str(min(WEEK_MS, max(HOUR_MS, keep // 10)))
        if copies >= 3:
            found["min.insync.replicas"] = "2"  # acks=all means at least two
        return found

    async def _wait_for_leaders(self, fulls: list[str]) -> None:
        """Wait until each partition's leader answers as such.

        Brokers learn of a new topic one after another, later than the client's metadata.
        """
        end = asyncio.get_running_loop().time() + READY_S
        left = set(fulls)
        while True:
            left -= {
                full for full in left if self._client.cluster.partitions_for_topic(full)
            } - await self._without_leader(left)
            if not left:
                return
            if asyncio.get_running_loop().time() > end:
                raise LogError(
                    f"the topic {min(left)!r} has no leader after {READY_S:.0f} s", remedy="are all brokers up?"
                )
            await asyncio.sleep(0.02)
            await self._client.force_metadata_update()

    async def _without_leader(self, fulls: Iterable[str]) -> set[str]:
        cluster, found = self._client.cluster, set()
        by_node: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for full in fulls:
            for partition in cluster.partitions_for_topic(full) or ():
                node = cluster.leader_for_partition(TopicPartition(full, partition))
                if node is None or node < 0:
                    found.add(full)
                else:
                    by_node.setdefault(node, {}).setdefault(full, []).append((partition, LATEST))
        for node, topics in by_node.items():
            try:
                response = await self._client.send(node, OffsetRequest(-1, 0, list(topics.items())))
                found |= {full for full, entries in response.topics if any(entry[1] for entry in entries)}
            except k.KafkaError:
                found |= set(topics)
        return found

    # ------------------------------------------------------------ settings

    async def ensure(self, topics: Mapping[str, Topic]) -> None:
        """Create topics and update settings.

        Raises LogError, naming differences that cannot be changed.
        """
        known = dict(
            zip(topics, await asyncio.gather(*[self.get_or_create(n, t) for n, t in topics.items()]), strict=True)
        )
        for name, settings in topics.items():
            if settings.partitions < known[name].count:
                raise LogError(
                    f"the topic {name!r} has {known[name].count} partitions and cannot have {settings.partitions}",
                    remedy="partitions can only be added; records would lose their place",
                )
        for name, settings in topics.items():
            if settings.partitions > known[name].count:
                await self._grow(known[name], settings.partitions)
        self._required |= known.keys()
        fulls = [known[name].full for name in topics]
        try:
            configs = await self._described(fulls)
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), "describe the topics") from e
        for name, settings in topics.items():
            await self._repair(known[name], settings, configs[known[name].full])
            self._update(name, settings)

    async def _grow(self, known: KafkaTopic, count: int) -> None:
        try:
            await self._admin.create_partitions({known.full: NewPartitions(count)})
            end = asyncio.get_running_loop().time() + READY_S
            while len(self._client.cluster.partitions_for_topic(known.full) or ()) < count:
                if asyncio.get_running_loop().time() > end:
                    raise k.KafkaTimeoutError("the brokers do not show them")
                await asyncio.sleep(0.02)
                await self._client.force_metadata_update()
            await self._wait_for_leaders([known.full])
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), f"give the topic {known.full!r} {count} partitions") from e

    async def _repair(self, known: KafkaTopic, topic: Topic, found: Mapping[str, tuple[str, int]]) -> None:
        wanted = configs_of(topic)
        # A larger limit is fine.
        if int(found["max.message.bytes"][0]) < largest(self._address.record_bytes):
            wanted["max.message.bytes"] = str(largest(self._address.record_bytes))
        wrong = {name: value for name, value in wanted.items() if not same(found[name][0], value)}
        if not wrong:
            return
        differs = ", ".join(f"{name} is {found[name][0]}, not {value}" for name, value in wrong.items())
        try:
            # The request replaces all settings of the topic, so include those that others made.
            (every,) = await self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, known.full)])
            kept = {e[0]: e[1] for e in every.resources[0][4] if e[3] == DYNAMIC}
            resource = ConfigResource(ConfigResourceType.TOPIC, known.full, kept | wrong)
            for response in await self._admin.alter_configs([resource]):
                for code, message, *_ in response.resources:
                    if code:
                        raise k.for_code(code)(message or known.full)
        except (k.KafkaError, OSError) as e:
            change = ",".join(f"{name}={value}" for name, value in wrong.items())
            raise LogError(
                f"the topic {known.full!r} has other settings than oncue needs ({differs}), and they could not be"
                f" changed: {explain(e, str(self._address), 'change them').message}",
                remedy=f"have them changed: kafka-configs.sh --bootstrap-server {self._address.servers[0]} --alter"
                f" --entity-type topics --entity-name {known.full} --add-config {change}",
            ) from e
        logger.warning("corrected settings of the topic %s: %s", known.full, differs)

    async def close(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def all(self) -> dict[str, Topic]:
        """Return current settings, read from the cluster. Raises LogError."""
        await self._refresh()
        return {name: known.settings for name, known in self._known.items()}

    async def _refresh(self) -> None:
        try:
            cluster = await self._client.fetch_all_metadata()
            new = {f: len(cluster.partitions_for_topic(f) or ()) for f in cluster.topics() if self.short(f)}
            configs = await self._described(new)
            ids = await topic_ids(self._client, [f for f in new if f[len(self._prefix) :] not in self._known])
        except (k.KafkaError, OSError) as e:
            raise explain(e, str(self._address), "list the topics") from e
        for full, count in new.items():
            self._update(full[len(self._prefix) :], _topic(count, configs[full]), ids.get(full, b""))
        await self._subscribe()


def largest(record_bytes: int) -> int:
    """Return max.message.bytes: record, framing, and lz4's overhead."""
    return record_bytes + record_bytes // 64 + 65_536


def configs_of(topic: Topic) -> dict[str, str]:
    expires = topic.retention_ms or topic.retention_bytes
    policy = ("compact,delete" if expires else "compact") if topic.compact else "delete"
    return {
        "retention.ms": str(topic.retention_ms or -1),
        "retention.bytes": str(topic.retention_bytes or -1),
        "cleanup.policy": policy,
    }


def _topic(count: int, found: Mapping[str, tuple[str, int]]) -> Topic:
    return Topic(
        partitions=count,
        retention_ms=max(0, int(found["retention.ms"][0])),
        retention_bytes=max(0, int(found["retention.bytes"][0])),
        compact="compact" in found["cleanup.policy"][0],
    )


def _with(topic: Topic, partitions: int) -> Topic:
    return Topic(
        partitions=partitions,
        retention_ms=topic.retention_ms,
        retention_bytes=topic.retention_bytes,
        compact=topic.compact,
    )


def same(a: str, b: str) -> bool:
    return sorted(a.split(",")) == sorted(b.split(","))
