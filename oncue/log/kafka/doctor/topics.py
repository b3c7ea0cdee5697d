"""Checks of topics: settings, partitions, replicas, leaders.

Findings say what a server corrects by itself at its next start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiokafka.conn import AIOKafkaConnection

from oncue.log.base import Topic
from oncue.log.finding import Finding
from oncue.log.kafka.address import Address
from oncue.log.kafka.requests import ClusterDescription, TopicDescription, topic_configs
from oncue.log.kafka.topics import CHUNK, configs_of, largest, same
from oncue.protocol.topics import TASKS_PREFIX

DAY_MS = 86_400_000
CHECKED = (
    "retention.ms",
    "retention.bytes",
    "cleanup.policy",
    "max.message.bytes",
    "min.insync.replicas",
    "message.timestamp.type",
    "unclean.leader.election.enable",
)
SAFE_COPIES, SAFE_IN_SYNC = 3, 2
Problem = tuple[str, str]  # what is wrong, what to do


async def check_topics(
    conn: AIOKafkaConnection, address: Address, there: ClusterDescription, wanted: Mapping[str, Topic]
) -> list[Finding]:
    """Check the topics. Raises KafkaError."""
    prefix = address.options.prefix
    names = dict(wanted) | {
        full[len(prefix) :]: Topic() for full in there.topics if full.startswith(prefix + TASKS_PREFIX)
    }
    present = {name: there.topics[prefix + name] for name in names if prefix + name in there.topics}
    if not present:
        return [
            Finding("kafka topics", True, "none of oncue's topics exists yet: a server creates them at its first start")
        ]
    fulls = [seen.name for seen in present.values()]
    configs: dict[str, dict[str, str]] = {}
    for start in range(0, len(fulls), CHUNK):
        configs |= await topic_configs(conn, fulls[start : start + CHUNK], list(CHECKED))
    check = TopicChecks(address, there)
    found, fine = [], 0
    for name, topic in names.items():
        seen = present.get(name)
        problems = list(check.problems(seen, topic, configs.get(seen.name))) if seen else [_missing()]
        found += [Finding(f"topic {prefix}{name}", False, text, remedy) for text, remedy in problems]
        if not problems and name.startswith(TASKS_PREFIX):
            fine += 1
        elif not problems and seen:
            found.append(Finding(f"topic {prefix}{name}", True, _summary(seen, topic)))
    if fine:
        found.append(Finding(f"topics {prefix}{TASKS_PREFIX}*", True, f"{fine} of endpoints' tasks"))
    return found


def _missing() -> Problem:
    return "is not there, others are", "start the server anew: it makes what is missing; what was in it is gone"


def _summary(seen: TopicDescription, topic: Topic) -> str:
    copies = min((len(p.replicas) for p in seen.partitions), default=0)
    kept = f"kept {topic.retention_ms / DAY_MS:g} days" if topic.retention_ms else "kept"
    return f"partitions: {len(seen.partitions)}, copies: {copies}, {'compacted' if topic.compact else kept}"


class TopicChecks:
    """Finds the problems of a topic."""

    def __init__(self, address: Address, there: ClusterDescription) -> None:
        self._address, self._there = address, there

    def problems(self, seen: TopicDescription, topic: Topic, configs: Mapping[str, str] | None) -> Iterator[Problem]:
        if len(seen.partitions) < topic.partitions:
            yield (
                f"has partitions: {len(seen.partitions)}, the settings say {topic.partitions}",
                "start the server anew: it adds them",
            )
        yield from self._leaders(seen)
        yield from self._copies(seen)
        if configs is not None:
            yield from self._in_sync(seen, int(configs["min.insync.replicas"]))
            yield from self._settings(seen, topic, configs)

    def _leaders(self, seen: TopicDescription) -> Iterator[Problem]:
        orphans = [p for p in seen.partitions if p.leader < 0]
        if orphans:
            nodes = sorted({n for p in orphans for n in p.replicas})
            yield (
                f"nobody leads the partitions {_list([p.number for p in orphans])}: they can be neither read nor written",
                f"start the brokers that have them: one of {_list(nodes)}",
            )

    def _copies(self, seen: TopicDescription) -> Iterator[Problem]:
        wanted = self._address.options.replication
        if wanted < 1:
            wanted = min(SAFE_COPIES, len(self._there.brokers))
        few = min((len(p.replicas) for p in seen.partitions), default=wanted)
        if few < wanted:
            yield (
                f"copies: {few}, not {wanted}: a broker that is lost takes its records along",
                f"give it more: kafka-reassign-partitions.sh --bootstrap-server {self._address.servers[0]}"
                f" --reassignment-json-file FILE, with {wanted} replicas for each partition of {seen.name}",
            )
        behind = [p for p in seen.partitions if p.leader >= 0 and len(p.in_sync) < len(p.replicas)]
        if behind:
            nodes = sorted({n for p in behind for n in set(p.replicas) - set(p.in_sync)})
            yield (
                f"copies are missing or behind, of the partitions {_list([p.number for p in behind])}",
                f"is broker {_list(nodes)} up? its server.log says why it is behind",
            )

    def _in_sync(self, seen: TopicDescription, needed: int) -> Iterator[Problem]:
        short = [p for p in seen.partitions if p.leader >= 0 and len(p.in_sync) < needed]
        copies = min((len(p.replicas) for p in seen.partitions), default=0)
        if short:
            lower = self._change(seen, {"min.insync.replicas": str(copies)})
            yield (
                f"cannot be written: min.insync.replicas is {needed}, in sync: {min(len(p.in_sync) for p in short)}",
                "start the brokers that are away"
                if copies >= needed
                else f"there are fewer copies than that: add copies, or {lower}",
            )
        elif copies >= SAFE_COPIES and needed < SAFE_IN_SYNC:
            yield (
                f"min.insync.replicas is {needed}: what is accepted may be on one broker only",
                self._change(seen, {"min.insync.replicas": str(SAFE_IN_SYNC)}),
            )

    def _settings(self, seen: TopicDescription, topic: Topic, configs: Mapping[str, str]) -> Iterator[Problem]:
        wanted = configs_of(topic)
        largest_bytes = largest(self._address.record_bytes)
        if int(configs["max.message.bytes"]) < largest_bytes:
            wanted["max.message.bytes"] = str(largest_bytes)
        ours = {n: v for n, v in wanted.items() if not same(configs[n], v)}
        if ours:
            yield (
                _differs(ours, configs),
                f"start the server anew: it puts this right if it may; or by hand: {self._change(seen, ours)}",
            )
        others = {"message.timestamp.type": "CreateTime", "unclean.leader.election.enable": "false"}
        theirs = {n: v for n, v in others.items() if configs[n] != v}
        if theirs:
            yield _differs(theirs, configs), self._change(seen, theirs)

    def _change(self, seen: TopicDescription, wanted: Mapping[str, str]) -> str:
        change = ",".join(f"{n}=[{v}]" if "," in v else f"{n}={v}" for n, v in wanted.items())
        return (
            f"kafka-configs.sh --bootstrap-server {self._address.servers[0]} --alter --entity-type topics"
            f" --entity-name {seen.name} --add-config {change}"
        )


def _differs(wanted: Mapping[str, str], configs: Mapping[str, str]) -> str:
    return ", ".join(f"{n} is {configs[n]}, not {v}" for n, v in wanted.items())


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
