"""Ids of topics, which aiokafka does not ask for.

A topic that was deleted and made anew has the same name and another id. The layout is that of the
protocol guide (kafka.apache.org/protocol): Metadata v10, which brokers have since Kafka 2.8.
"""

# mypy: disable-error-code="misc"
# (aiokafka has no types: its classes cannot be subclassed otherwise)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

ID_BYTES = 16
CHUNK = 100  # topics per request


class TopicId(AbstractType[bytes]):
    """A topic's id: 16 bytes, zeros for none."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Return it as it is."""
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read one. Raises ValueError at the end of the data."""
        value = data.read(ID_BYTES)
        if len(value) != ID_BYTES:
            raise ValueError("a topic's id is cut off")
        return value


_TEXT = CompactString("utf-8")


class _Metadata(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("id", TopicId),
                ("internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Metadata
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("topics", CompactArray(("id", TopicId), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("cluster_operations", Boolean),
        ("topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(bytes(ID_BYTES), name, {}) for name in self._topics], False, False, False, {})


async def topic_ids(client: AIOKafkaClient, topics: Iterable[str]) -> dict[str, bytes]:
    """Return the ids of those topics that exist; {} if the brokers know no ids.

    Raises KafkaError.
    """
    names = list(topics)
    found: dict[str, bytes] = {}
    for start in range(0, len(names), CHUNK):
        try:
            answer: Any = await client.send(client.get_random_node(), _MetadataRequest(names[start : start + CHUNK]))
        except (NotImplementedError, k.IncompatibleBrokerVersion):
            return {}
        found |= {name: id_ for error, name, id_, *_ in answer.topics if not error and any(id_)}
    return found
