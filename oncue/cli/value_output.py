"""A task's value as text and as JSON.

A value that is not plain data is a pickle, and unpickling runs code. As in the client, a pickle is
loaded only if its endpoint belongs to the caller or is trusted.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import pathlib
import uuid
from typing import Any, NamedTuple

import msgspec

from oncue.cli.output import plain
from oncue.client.deadline import Deadline
from oncue.client.files import ShellResult
from oncue.client.task import Task
from oncue.errors import Forbidden, OncueError, Unreachable, UntrustedResult
from oncue.protocol import payload
from oncue.protocol.api import TaskInfo
from oncue.protocol.codec import INT_MAX, INT_MIN

FETCH_BYTES = 1 << 20  # a larger value in the blob store is not fetched
TEXT_CHARS = 10_000
ITEMS = 10_000  # of an array that becomes a list
DEEPEST = 64
WAIT_S = 30.0


class ValueOutput(NamedTuple):
    """A task's value in the forms that commands print."""

    text: str  # for people; not escaped yet
    json: Any
    why_not: str = ""  # why it was not unpickled; text and json are a note then


def value_output(task: Task[Any], info: TaskInfo) -> ValueOutput:
    """Return the task's value, if it has one. Raises Unreachable."""
    if not info.has_value:
        return ValueOutput("", None)
    try:
        ref = payload.ref_of(task._outcome(Deadline(WAIT_S)).value)
    except Forbidden:  # a read-only token gets the server's note
        return ValueOutput(text_of(info.value), info.value)
    note = str(info.value)
    if ref is not None and ref.size_bytes > FETCH_BYTES:
        return ValueOutput(note, note, f"it is large; Client().task({info.id!r}).result() fetches it")
    try:
        value = task.result(WAIT_S)
    except UntrustedResult:
        return ValueOutput(note, note, f"it would run code of whoever owns the endpoint {info.endpoint!r}")
    except Unreachable:
        raise
    except OncueError as e:
        return ValueOutput(note, note, e.message)
    if isinstance(value, ShellResult):
        value = value.plain()
    return ValueOutput(text_of(value), json_of(value))


def text_of(value: Any) -> str:
    """Return the value's text form.

    Text as it is, plain data as JSON, other values as their repr of at most TEXT_CHARS.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if payload.has_plain_types(value):
        made = json_of(value)
        if made == value:  # not so with bytes, or nan
            return plain(made)
    return _repr(value)


def json_of(value: Any, depth: int = DEEPEST) -> Any:
    """Return the value's JSON form.

    A tuple or set becomes a list, an array's scalar a number. A value without one becomes {"repr":
    ..., "type": ...}.
    """
    try:
        return _json(value, depth)
    except Exception:  # a value's own methods may do anything
        return _opaque(value)


def _json(value: Any, depth: int) -> Any:
    if depth == 0:
        return _opaque(value)
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if INT_MIN <= value <= INT_MAX else _opaque(value)
    if kind is float:
        # JSON has no nan and no infinity; the server writes them as text, too.
        return value if value - value == 0 else str(value)
    if kind is dict:
        if all(isinstance(k, str | int) for k in value) and len({str(k) for k in value}) == len(value):
            return {str(k): json_of(v, depth - 1) for k, v in value.items()}
        return _opaque(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [json_of(v, depth - 1) for v in value]
    if isinstance(value, str | pathlib.PurePath | uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return json_of(value.value, depth - 1)
    if isinstance(value, int | float) and not hasattr(value, "dtype"):
        return json_of(int(value) if isinstance(value, int) else float(value), depth - 1)
    if dataclasses.is_dataclass(kind):
        return {f.name: json_of(getattr(value, f.name), depth - 1) for f in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: json_of(getattr(value, name), depth - 1) for name in value.__struct_fields__}
    if (
        hasattr(value, "dtype") and hasattr(value, "tolist") and getattr(value, "size", 0) <= ITEMS
    ):  # numpy's, and its like
        made = value.tolist()
        return _opaque(value) if type(made) is kind else json_of(made, depth - 1)
    return _opaque(value)


def _opaque(value: Any) -> dict[str, str]:
    kind = type(value)
    return {"repr": _repr(value), "type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")}


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as e:
        return f"<{type(value).__qualname__} whose repr raised {type(e).__name__}>"
    return text if len(text) <= TEXT_CHARS else text[:TEXT_CHARS] + f"… ({len(text):,} characters in all)"
