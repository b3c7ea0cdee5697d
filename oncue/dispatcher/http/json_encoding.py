"""JSON encoding of any value.

Results of functions and data of events may have values that JSON has not. They are shown in the
nearest form.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_DEEPEST = 100


def encode_json(value: Any) -> bytes:
    """Encode any value.

    Lone surrogates are escaped, keys become text, parts that are nested too deeply become a note.
    """
    try:
        return _encode(value)
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return _encode(_plain(value, 0))


def encode_items(items: Sequence[Any]) -> bytes:
    """Encode a list item by item: a thread that does so yields in between."""
    return b"[" + b",".join([encode_json(item) for item in items]) + b"]"


def _plain(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return "(nested too deeply to show)"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {_plain(str(k), depth): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v, depth + 1) for v in value]
    if isinstance(value, msgspec.Struct):
        if value.__struct_config__.array_like:
            return [_plain(getattr(value, name), depth + 1) for name in value.__struct_fields__]
        return {name: _plain(getattr(value, name), depth + 1) for name in value.__struct_fields__}
    return _plain(repr(value), depth)
