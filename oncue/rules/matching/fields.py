"""Paths into an event, compiled to functions event -> value.

The value is MISSING where the event has none. Examples: `data.meta.size`, `type`, `subject`, the
name of an extension, `data."a.b"` for a key with a dot, `data.tags.0` for an item of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from oncue.protocol.records import Event
from oncue.strict_yaml.document import nearest


class _Missing:
    def __repr__(self) -> str:
        return "nothing"

    def __bool__(self) -> bool:
        return False


MISSING: Any = _Missing()
Get = Callable[[Event], Any]
ATTRIBUTES = ("id", "source", "type", "subject", "time", "datacontenttype", "dataschema")
_PART = re.compile(r'"((?:[^"\\]|\\.)*)"|([^."\s]+)')
MAX_CHARS = 10_000  # of a path: thousands are kept
_EXTENSION = re.compile(r"[a-z0-9]{1,60}")


def parse_path(path: str) -> tuple[str, ...]:
    """Return the parts of a path. Raises ValueError, with the nearest known word."""
    if len(path) > MAX_CHARS:
        raise ValueError(f"the path {path[:40]!r}... has {len(path):,} characters; at most {MAX_CHARS:,}")
    parts, at = [], 0
    while at <= len(path):
        match = _PART.match(path, at)
        if match is None:
            raise ValueError(f"{path!r} is not a path into an event, such as data.size or subject")
        parts.append(match[2] if match[1] is None else re.sub(r"\\(.)", r"\1", match[1]))
        at = match.end()
        if at == len(path):
            break
        if path[at] != ".":
            raise ValueError(f"{path!r} is not a path into an event, such as data.size or subject")
        at += 1
    if len(parts) > 32:
        raise ValueError(f"the path {path[:40]!r}... has {len(parts)} parts; at most 32")
    if parts[0] != "data" and (len(parts) > 1 or not _EXTENSION.fullmatch(parts[0])):
        known = ("data", *ATTRIBUTES)
        raise ValueError(f"an event has no {parts[0]!r} to look into: {nearest(parts[0], known)}")
    return tuple(parts)


@lru_cache(maxsize=4096)
def getter(path: str) -> Get:
    """Return a function event -> value of the path, or MISSING. Raises ValueError."""
    parts = parse_path(path)
    if parts[0] != "data":
        return _attribute(parts[0])
    if len(parts) == 1:
        return lambda event: MISSING if event.data is None else event.data
    if len(parts) == 2:
        return _one(parts[1])
    return _deep(parts[1:])


def _attribute(name: str) -> Get:
    if name in ATTRIBUTES:

        def standard(event: Event) -> Any:
            value = getattr(event, name)
            return MISSING if value is None else value

        return standard
    return lambda event: event.extensions.get(name, MISSING)


def _one(key: str) -> Get:
    def get(event: Event) -> Any:
        data = event.data
        return data.get(key, MISSING) if type(data) is dict else step_into(data, key)

    return get


def _deep(keys: tuple[str, ...]) -> Get:
    def get(event: Event) -> Any:
        value = event.data
        for key in keys:
            value = value.get(key, MISSING) if type(value) is dict else step_into(value, key)
            if value is MISSING:
                return MISSING
        return value

    return get


def step_into(value: Any, key: str) -> Any:
    """Return an item of a list, or MISSING."""
    if isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 8 and int(key) < len(value):
        return value[int(key)]
    return MISSING
