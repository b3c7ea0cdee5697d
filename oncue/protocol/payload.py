"""Arguments and results as bytes: one letter for the format, then the content.

m  msgpack: values whose types survive a round trip (None, bool, int of 64 bits, float, str, bytes,
   list, dict with str keys) and whose lists and dicts are referenced once each. The server can show
   them without running code.
p  pickle by cloudpickle, protocol 5: all other values. Only a worker, or a client that trusts the
   origin, loads it.
r  Ref: the content, with its own letter, is in the blob store because it is large.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec

from oncue.errors import CannotPack, Undecodable
from oncue.pickles import Pickler, loads
from oncue.pickles.pickler import Ids
from oncue.protocol.codec import DECODE_ERRORS, build_decoders
from oncue.protocol.records import INLINE_BYTES, Stored

MSGPACK, PICKLE, REF = b"m", b"p", b"r"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_SCALARS = frozenset((type(None), bool, float, str, bytes))
_DEPTH = 64  # of lists and dicts in one another
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class Ref(Stored, frozen=True):
    """A payload in the blob store."""

    sha256: str  # hex, of the content
    size_bytes: int
    store: str = ""  # "": the server's own


def is_plain(value: Any) -> bool:
    """Return True if msgpack reproduces the value exactly.

    All types are supported, and no list or dict is referenced twice: the copy would have two.
    """
    kind = type(value)
    if kind is list or kind is dict:
        return _plain_inside(value, kind, _DEPTH, set())
    return kind in _SCALARS or (kind is int and _INT_MIN <= value <= _INT_MAX)


def has_plain_types(value: Any) -> bool:
    """Return True if all types are supported; a list may be referenced twice."""
    return _plain_inside([value], list, _DEPTH, None)


def _plain_inside(value: Any, kind: type, depth: int, seen: set[int] | None) -> bool:
    """Check the items of a list or dict.

    `seen` has the ids of lists and dicts checked before; they live as long as the root value.
    """
    if depth == 0:
        return False
    if seen is not None:
        if id(value) in seen:
            return False
        seen.add(id(value))
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    for v in value:
        kind = type(v)
        if kind in _SCALARS:
            continue
        if kind is int:
            if not _INT_MIN <= v <= _INT_MAX:
                return False
        elif not ((kind is list or kind is dict) and _plain_inside(v, kind, depth - 1, seen)):
            return False
    return True


def pack(value: Any, *, as_data: bool = False, ids: Ids = Ids.KEPT) -> bytes:
    """Encode one value, inline whatever its size (see `needs_blob`).

    `as_data`: the value was read from JSON, where no list is referenced twice. `ids`: see
    oncue.pickles.pickler. Raises CannotPack if the value cannot be pickled.
    """
    if has_plain_types(value) if as_data else is_plain(value):
        try:
            return MSGPACK + _encode(value)
        except UnicodeEncodeError:  # a lone surrogate: msgpack has none, pickle has
            pass
    try:
        return _pickled(value, ids)
    except Exception as e:
        raise CannotPack(
            f"a value of type {type(value).__name__} cannot be pickled: {type(e).__name__}: {e}",
            remedy="open files, sockets and locks inside the function that uses them",
        ) from e


def _pickled(value: Any, ids: Ids) -> bytes:
    buffer = io.BytesIO()
    buffer.write(PICKLE)
    Pickler(buffer, ids).dump(value)
    return buffer.getvalue()


def pack_args(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Encode the arguments of a call. Raises CannotPack, which names the argument."""
    try:
        return pack([list(args), kwargs], ids=Ids.CONTENT)
    except CannotPack as e:
        named = {f"argument {n}": value for n, value in enumerate(args, 1)}
        named |= {f"argument {name}": value for name, value in kwargs.items()}
        for name, value in named.items():
            try:
                pack(value, ids=Ids.CONTENT)
            except CannotPack as own:
                raise CannotPack(f"{name}: {own.message}", remedy=own.remedy) from own.__cause__
        raise e


def needs_blob(payload: bytes) -> bool:
    """Return True if the payload is too large to be sent inline."""
    return len(payload) > INLINE_BYTES


def pack_ref(ref: Ref) -> bytes:
    return REF + _encode(ref)


def ref_of(payload: bytes) -> Ref | None:
    """Return the payload's Ref; None if it is inline. Raises Undecodable."""
    if payload[:1] != REF:
        return None
    try:
        return msgspec.msgpack.decode(payload[1:], type=Ref)
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a reference to a blob: {e}") from None


def unpack(payload: bytes, fetch: Callable[[Ref], bytes] | None = None, *, at_home: bool = True) -> Any:
    """Decode a value. **Runs code** for pickles.

    Only workers, and clients that trust the sender, may call this. `at_home`: this process is a
    program of the person whose value it is (see oncue.pickles.reader). Raises Undecodable if the
    bytes are not a payload, or refer to a blob and `fetch` is None; OtherPython; any error of
    unpickling.
    """
    letter = payload[:1]
    if letter == MSGPACK:
        try:
            return _decode(payload[1:])
        except DECODE_ERRORS as e:
            raise Undecodable(f"not a msgpack payload: {e}") from None
    if letter == PICKLE:
        return loads(payload, 1, at_home=at_home)
    ref = ref_of(payload)
    if ref is None or fetch is None:
        raise Undecodable(f"not a payload that can be read here (it starts with {letter!r})")
    return unpack(fetch(ref), None, at_home=at_home)


def unpack_args(payload: bytes, fetch: Callable[[Ref], bytes] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Decode the arguments of a call, in a worker. **Runs code** for pickles.

    Raises as `unpack`.
    """
    args, kwargs = unpack(payload, fetch, at_home=False)
    return tuple(args), kwargs


def peek(payload: bytes) -> tuple[bool, Any]:
    """Return (True, value) for msgpack, otherwise (False, note for people).

    Runs no code.
    """
    letter = payload[:1]
    if letter == MSGPACK:
        return True, unpack(payload)
    if letter == PICKLE:
        return False, f"a pickled value of {len(payload) - 1:,} bytes"
    ref = ref_of(payload)
    if ref is not None:
        return False, f"a value of {ref.size_bytes:,} bytes in the blob store"
    return False, "nothing"


build_decoders(globals())
