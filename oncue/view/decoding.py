"""Records of the log as messages; and telling a damaged record from one of a kind that only a newer version knows."""

from __future__ import annotations

from typing import Any

import msgspec

from oncue.errors import Undecodable
from oncue.messages import (
    CONTROL,
    DEAD,
    REGISTRY,
    REPORTS,
    RESULTS,
    TASKS_PREFIX,
    VERSION,
    Control,
    DeadLetter,
    Registry,
    Report,
    ResultFrame,
    TaskFrame,
    decode,
)

_KINDS: dict[str, Any] = {
    RESULTS: ResultFrame,
    CONTROL: Control,
    REPORTS: Report,
    REGISTRY: Registry,
    DEAD: DeadLetter,
}
_TAGGED = frozenset((CONTROL, REPORTS, REGISTRY))
_TAGS = {
    CONTROL: frozenset(("claim", "cancel")),
    REPORTS: frozenset(("started", "output", "usage")),
    REGISTRY: frozenset(("function", "endpoint", "deployment", "switch", "token")),
}


class UnknownKind(Exception):
    """A record of a kind or version that this version does not know; args: its kind, as text."""


def read(topic: str, value: bytes) -> Any:
    """The message of a record; None for a topic that has no messages of ours. Raises Undecodable and UnknownKind."""
    kind = TaskFrame if topic.startswith(TASKS_PREFIX) else _KINDS.get(topic)
    if kind is None:
        return None
    try:
        return decode(kind, value)
    except Undecodable:
        newer = _newer(topic, value)
        if newer:
            raise UnknownKind(newer) from None
        raise


def _newer(topic: str, value: bytes) -> str:
    """What kind it says it is, where that is one that we do not know."""
    try:
        found = msgspec.msgpack.decode(value)
    except msgspec.MsgspecError:
        return ""
    if not isinstance(found, list) or not found:
        return ""
    tag, version = "", found[0]
    if topic in _TAGGED:
        tag, version = found[0], found[1] if len(found) > 1 else 0
        if isinstance(tag, str) and tag not in _TAGS[topic]:
            return tag
    if isinstance(version, int) and version > VERSION:
        return f"{tag or 'frame'} v{version}"
    return ""
