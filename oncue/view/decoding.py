"""Decoding of log records into messages.

Distinguishes damaged records from those of a kind that only a newer version knows.
"""

from __future__ import annotations

from typing import Any

import msgspec

from oncue.errors import Undecodable
from oncue.protocol.codec import DECODE_ERRORS, decode
from oncue.protocol.records import VERSION, Control, DeadLetter, Fence, Registry, Resolution, ResultFrame, TaskFrame
from oncue.protocol.reports import Report
from oncue.protocol.topics import CONTROL, DEAD, REGISTRY, REPORTS, RESULTS, TASKS_PREFIX

_KINDS: dict[str, Any] = {
    RESULTS: ResultFrame,
    CONTROL: Control,
    REPORTS: Report,
    REGISTRY: Registry,
    DEAD: DeadLetter,
}
_TAGS = {
    CONTROL: frozenset(("claim", "cancel")),
    REPORTS: frozenset(("started", "output", "usage")),
    REGISTRY: frozenset(("function", "endpoint", "deployment", "switch", "token")),
    DEAD: frozenset(("settled",)),
    RESULTS: frozenset(("fence",)),
}


class UnknownKind(Exception):
    """Record of an unknown kind or later version; args: its kind, as text."""


def decode_record(topic: str, value: bytes) -> Any:
    """Return a record's message; None in a topic without messages of oncue.

    Raises Undecodable, UnknownKind.
    """
    kind = TaskFrame if topic.startswith(TASKS_PREFIX) else _KINDS.get(topic)
    if kind is None:
        return None
    if topic == DEAD and _tag(_fields(value)):
        kind = Resolution
    try:
        return decode(kind, value)
    except Undecodable:
        if topic == RESULTS and _tag(_fields(value)) == "fence":
            return decode(Fence, value)
        newer = _newer(topic, value)
        if newer:
            raise UnknownKind(newer) from None
        raise


def _fields(value: bytes) -> list[Any]:
    try:
        found = msgspec.msgpack.decode(value)
    except DECODE_ERRORS:
        return []
    return found if isinstance(found, list) else []


def _tag(fields: list[Any]) -> str:
    """Return the tag; "" for untagged records, which begin with their version."""
    return fields[0] if fields and isinstance(fields[0], str) else ""


def _newer(topic: str, value: bytes) -> str:
    """Return the record's kind if this version does not know it, else ""."""
    fields = _fields(value)
    tag = _tag(fields)
    if tag and tag not in _TAGS.get(topic, {tag}):
        return tag
    version = next(iter(fields[1:] if tag else fields), 0)
    return f"{tag or 'frame'} v{version}" if isinstance(version, int) and version > VERSION else ""
