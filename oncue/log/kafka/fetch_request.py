"""Fetch requests that name topics by their ids, which aiokafka lacks.

A topic that was deleted and made anew has the same name and another id. By name, a reader would go
on in it at the old offset, and never read what is before. By id, the broker refuses the request.
Brokers older than 3.1 know no ids here: they are asked by name.

The layout is that of the protocol guide (kafka.apache.org/protocol): Fetch v13.
"""

# mypy: disable-error-code="misc"
# (aiokafka has no types: its classes cannot be subclassed otherwise)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from oncue.log.kafka.topic_ids import TopicId
from oncue.log.kafka.topics import KafkaTopic

READ_COMMITTED = 1
ANSWER_BYTES, PARTITION_BYTES = 4 * 1024 * 1024, 1024 * 1024  # at least one batch is returned, whatever its size
UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID = 100, 103  # aiokafka has no names for these codes


class FetchedPartition(NamedTuple):
    """Answer of a broker for one partition."""

    topic: str  # full name
    number: int
    error: int  # Kafka error code; 0: none
    records: bytes | None
    aborted: Sequence[tuple[int, int]]  # (producer id, first offset) of aborted transactions


class _ById(Response):
    API_KEY = 1
    API_VERSION = 13
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("id", TopicId),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("high_watermark", Int64),
                        ("last_stable_offset", Int64),
                        ("log_start_offset", Int64),
                        ("aborted", CompactArray(("producer", Int64), ("first", Int64), ("tags", TaggedFields))),
                        ("preferred_replica", Int32),
                        ("records", CompactBytes),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ByIdStruct(RequestStruct):
    API_KEY = 1
    API_VERSION = 13
    RESPONSE_TYPE = _ById
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("replica", Int32),
        ("wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("id", TopicId),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("offset", Int64),
                        ("last_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("max_bytes", Int32),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("forgotten", CompactArray(("id", TopicId), ("partitions", CompactArray(Int32)), ("tags", TaggedFields))),
        ("rack", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class _FetchById(Request[_ByIdStruct]):
    API_KEY = 1

    def __init__(self, wait_ms: int, topics: Mapping[KafkaTopic, Sequence[tuple[int, int]]]) -> None:
        self._wait_ms, self._topics = wait_ms, topics

    def build(self, request_struct_class: type[_ByIdStruct]) -> _ByIdStruct:
        topics: list[Any] = [
            (topic.id, [(number, -1, offset, -1, -1, PARTITION_BYTES, {}) for number, offset in places], {})
            for topic, places in self._topics.items()
        ]
        return request_struct_class(-1, self._wait_ms, 1, ANSWER_BYTES, READ_COMMITTED, 0, -1, topics, [], "", {})


async def fetch(
    client: AIOKafkaClient,
    node: int,
    connection: int,
    wait_ms: int,
    topics: Mapping[KafkaTopic, Sequence[tuple[int, int]]],
) -> list[FetchedPartition]:
    """Fetch from offsets: topic -> (partition, offset). Raises KafkaError."""
    if all(topic.id for topic in topics):
        try:
            answer = await client.send(node, _FetchById(wait_ms, topics), group=connection)
        except NotImplementedError:  # an older broker
            pass
        else:
            if answer.error_code:
                raise k.for_code(answer.error_code)("Fetch")
            names = {topic.id: topic.full for topic in topics}
            return [
                FetchedPartition(names[id_], p[0], p[1], p[7], [a[:2] for a in p[5] or ()])
                for id_, partitions, _ in answer.topics
                for p in partitions
            ]
    wanted = [(t.full, [(n, offset, PARTITION_BYTES) for n, offset in places]) for t, places in topics.items()]
    request = FetchRequest(wait_ms, 1, ANSWER_BYTES, READ_COMMITTED, wanted)
    answer = await client.send(node, request, group=connection)
    return [
        FetchedPartition(full, p[0], p[1], p[-1], (p[-2] if len(p) < 8 else p[-3]) or ())
        for full, partitions in answer.topics
        for p in partitions
    ]
