"""msgpack encoding and decoding of records.

msgspec builds the decoder of a Struct when it decodes one for the first time. That is not
thread-safe: two threads that decode the same Struct for the first time at once read types that are
half filled in, and the process crashes (seen with msgspec 0.22, in 1 of about 300 servers that
started under load). A module whose Structs are decoded in several threads therefore ends with
`build_decoders(globals())`: during its import, no other thread has its Structs yet.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from oncue.errors import Undecodable

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_building = threading.Lock()
#: What msgspec raises for bytes that are not what they should be, or nested too deeply.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1  # of msgpack


def decode(kind: type[T], data: bytes | memoryview) -> T:
    """Decode msgpack. Raises Undecodable, which names the wrong field."""
    decoder = _decoders.get(kind)
    if decoder is None:
        with _building:  # not thread-safe in msgspec: see above
            decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a {getattr(kind, '__name__', kind)}: {e}") from None


def build_decoders(module: dict[str, Any]) -> None:
    """Build the decoders of a module's Structs; call with `globals()`."""
    for value in list(module.values()):
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module["__name__"]:
            msgspec.msgpack.Decoder(value)
