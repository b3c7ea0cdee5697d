"""Kafka requests that aiokafka lacks: features, authorization, cluster time.

Their layouts are those of the protocol guide (kafka.apache.org/protocol): ApiVersions v3, Metadata
v8, DescribeGroups v3, DescribeQuorum v1.
"""

# mypy: disable-error-code="misc"
# (aiokafka has no types: its classes cannot be subclassed otherwise)

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import msgspec
from aiokafka import errors as k
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.admin import DescribeConfigsRequest, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

# Bits of "authorized operations", by the names of ACLs.
OPERATIONS = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Alter": 7,
    "Describe": 8,
    "DescribeConfigs": 10,
    "AlterConfigs": 11,
}
TOPIC = 2  # a resource's type
GROUP, TRANSACTION = 0, 1  # types of coordinators
FEATURE = "metadata.version"
# The last level of each release; higher levels are shown as "or later".
RELEASES = {7: "3.3", 8: "3.4", 11: "3.5", 14: "3.6", 19: "3.7", 20: "3.8", 21: "3.9", 25: "4.0", 27: "4.1", 29: "4.2"}


def release(level: int) -> str:
    """Return the Kafka release of a level of metadata.version."""
    found = next((name for last, name in RELEASES.items() if level <= last), "")
    return found or f"{list(RELEASES.values())[-1]} or later"


def operation_names(bits: int) -> set[str]:
    """Return the names of allowed OPERATIONS."""
    return {name for name, bit in OPERATIONS.items() if bits >> bit & 1}


# ---------------------------------------------------------------- features of a broker


class _FeaturesResponse(Response):
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("apis", CompactArray(("key", Int16), ("min", Int16), ("max", Int16), ("tags", TaggedFields))),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _FeaturesStruct(RequestStruct):
    API_KEY = 18
    API_VERSION = 3
    RESPONSE_TYPE = _FeaturesResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("client_software_name", CompactString("utf-8")),
        ("client_software_version", CompactString("utf-8")),
        ("tags", TaggedFields),
    )

    def parse_response_header(self, read_buffer: Any) -> Any:
        # This response keeps header v0: the client does not know the broker's versions yet.
        return ResponseHeader_v0.decode(read_buffer)


class _Features(Request[_FeaturesStruct]):
    API_KEY = 18

    def build(self, request_struct_class: type[_FeaturesStruct]) -> _FeaturesStruct:
        return request_struct_class("oncue", "1", {})


_SUPPORTED, _FINALIZED = 0, 2
_RANGES = CompactArray(("name", CompactString("utf-8")), ("a", Int16), ("b", Int16), ("tags", TaggedFields))


class FeatureLevels(msgspec.Struct, frozen=True):
    """Levels of metadata.version; 0 if unknown (before Kafka 3.3, or ZooKeeper)."""

    broker: int  # highest that this broker supports
    cluster: int  # active


async def levels(conn: AIOKafkaConnection) -> FeatureLevels:
    """Raises KafkaError."""
    try:
        answer = await conn.send(_Features())
    except NotImplementedError:  # older than 2.4
        return FeatureLevels(0, 0)
    if answer.error_code:
        raise k.for_code(answer.error_code)("ApiVersions")
    found = []
    for tag in (_SUPPORTED, _FINALIZED):
        ranges = _RANGES.decode(BytesIO(answer.tags[tag])) if tag in answer.tags else []
        found.append(max((max(a, b) for name, a, b, _ in ranges or [] if name == FEATURE), default=0))
    return FeatureLevels(*found)


# ---------------------------------------------------------------- metadata and authorization


class _MapResponse(Response):
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("name", String("utf-8")),
                ("internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("in_sync", Array(Int32)),
                        ("offline", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("operations", Int32),
    )


class _MapStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MapResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("cluster_operations", Boolean),
        ("topic_operations", Boolean),
    )


class _Map(Request[_MapStruct]):
    API_KEY = 3

    def __init__(self, topics: list[str] | None) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MapStruct]) -> _MapStruct:
        return request_struct_class(self._topics, False, True, True)


class PartitionDescription(msgspec.Struct, frozen=True):
    """Leader and replicas of a partition."""

    number: int
    leader: int  # -1: none
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


class TopicDescription(msgspec.Struct, frozen=True):
    """Metadata of a topic."""

    name: str
    error: int  # Kafka error code; 0: none
    partitions: tuple[PartitionDescription, ...]
    operations: frozenset[str]


class ClusterDescription(msgspec.Struct, frozen=True):
    """Metadata of a cluster."""

    brokers: dict[int, tuple[str, int]]  # node -> advertised (host, port)
    controller: int
    operations: frozenset[str]  # on the cluster itself
    topics: dict[str, TopicDescription]


async def describe_cluster(conn: AIOKafkaConnection, topics: list[str] | None = None) -> ClusterDescription:
    """Return metadata of topics (None: all visible). Raises KafkaError."""
    answer = await conn.send(_Map(topics))
    found = {}
    for error, name, _, partitions, operations in answer.topics:
        copies = tuple(
            sorted(
                (PartitionDescription(p[1], p[2], tuple(p[4]), tuple(p[5])) for p in partitions), key=lambda c: c.number
            )
        )
        found[name] = TopicDescription(name, error, copies, frozenset(operation_names(operations)))
    brokers = {node: (host, port) for node, host, port, _ in answer.brokers}
    return ClusterDescription(brokers, answer.controller, frozenset(operation_names(answer.operations)), found)


class _GroupsStruct(RequestStruct):
    API_KEY = 15
    API_VERSION = 3
    # aiokafka's own request of this version expects the response of v2.
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("operations", Boolean))


class _Groups(Request[_GroupsStruct]):
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_GroupsStruct]) -> _GroupsStruct:
        return request_struct_class([self._group], True)


class GroupDescription(msgspec.Struct, frozen=True):
    """State of a consumer group."""

    error: int
    state: str  # Stable, Empty, Dead ...
    members: int
    operations: frozenset[str]


async def group_state(conn: AIOKafkaConnection, group: str) -> GroupDescription:
    """Describe a group; asks its coordinator. Raises KafkaError."""
    ((error, _, state, _, _, members, operations),) = (await conn.send(_Groups(group))).groups
    return GroupDescription(error, state, len(members), frozenset(operation_names(operations)))


async def topic_configs(conn: AIOKafkaConnection, topics: list[str], names: list[str]) -> dict[str, dict[str, str]]:
    """Return topic -> setting -> value of accessible topics. Raises KafkaError."""
    answer = await conn.send(DescribeConfigsRequest([(TOPIC, topic, names) for topic in topics]))
    found = {}
    for code, message, _, topic, entries in answer.resources:
        if k.for_code(code) is k.TopicAuthorizationFailedError:
            continue
        if code:
            raise k.for_code(code)(message or topic)
        found[topic] = {entry[0]: entry[1] for entry in entries}
    return found


async def coordinator(conn: AIOKafkaConnection, name: str, kind: int = GROUP) -> int:
    """Return the coordinator's node of a group or transaction. Raises KafkaError."""
    answer = await conn.send(FindCoordinatorRequest(name, kind))
    if answer.error_code:
        raise k.for_code(answer.error_code)(name)
    return int(answer.coordinator_id)


async def committed(conn: AIOKafkaConnection, group: str) -> dict[tuple[str, int], int]:
    """Return (topic, partition) -> offset from the coordinator. Raises KafkaError."""
    answer = await conn.send(OffsetFetchRequest(group, None))
    if answer.error_code:
        raise k.for_code(answer.error_code)(group)
    return {(topic, p[0]): p[1] for topic, partitions in answer.topics for p in partitions if not p[3] and p[1] >= 0}


async def list_offsets(conn: AIOKafkaConnection, topic: str, partitions: list[int], which: int) -> dict[int, int]:
    """Return BEGIN or END of partitions that this broker leads. Raises KafkaError."""
    answer = await conn.send(OffsetRequest(-1, 0, [(topic, [(p, which) for p in partitions])]))
    return {entry[0]: entry[3] for _, entries in answer.topics for entry in entries if not entry[1]}


# ---------------------------------------------------------------- cluster time

_REPLICA = (
    ("replica", Int32),
    ("end", Int64),
    ("fetched_ms", Int64),
    ("caught_up_ms", Int64),
    ("tags", TaggedFields),
)


class _QuorumResponse(Response):
    API_KEY = 55
    API_VERSION = 1
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("leader", Int32),
                        ("epoch", Int32),
                        ("high_watermark", Int64),
                        ("voters", CompactArray(*_REPLICA)),
                        ("observers", CompactArray(*_REPLICA)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _QuorumStruct(RequestStruct):
    API_KEY = 55
    API_VERSION = 1
    RESPONSE_TYPE = _QuorumResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partitions", CompactArray(("partition", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Quorum(Request[_QuorumStruct]):
    API_KEY = 55

    def build(self, request_struct_class: type[_QuorumStruct]) -> _QuorumStruct:
        return request_struct_class([("__cluster_metadata", [(0, {})], {})], {})


async def cluster_time_s(conn: AIOKafkaConnection) -> float:
    """Return the active controller's time in seconds since 1970.

    NaN before Kafka 3.3. Raises KafkaError: ClusterAuthorizationFailedError without Describe on the
    cluster.
    """
    try:
        answer = await conn.send(_Quorum())
    except (NotImplementedError, k.IncompatibleBrokerVersion):
        return math.nan
    if answer.error_code:
        raise k.for_code(answer.error_code)("DescribeQuorum")
    for _, partitions, _ in answer.topics:
        for _, error, leader, _, _, voters, _, _ in partitions:
            if error:
                raise k.for_code(error)("DescribeQuorum")
            # The leader's own entry has the current time.
            return next((fetched_ms / 1000 for node, _, fetched_ms, _, _ in voters if node == leader), math.nan)
    return math.nan
