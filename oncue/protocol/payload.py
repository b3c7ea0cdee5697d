"""Arguments and results as bytes: one letter for the format, then the content.

m  msgpack: values whose types survive a round trip (None, bool, int of 64 bits, float, str, bytes,
   list, dict with str keys) and whose lists and dicts are referenced once each. The server can show
   them without running code.
p  pickle by cloudpickle, protocol 5: all other values. Only a worker, or a client that trusts the
   origin, loads it.
r  Ref: the content, with its own letter, is in the blob store because it is large. Or its pickle is
   in the Ref, and large buffers are in the blob store, one blob each (see oncue.protocol.buffers).
f  WithFiles: a result, with its own letter, and the files that its task has left, as blobs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec

from oncue.errors import CannotPack, OncueError, Undecodable
from oncue.pickles import Pickler, loads
from oncue.pickles.open_files import OpenFile
from oncue.pickles.pickler import Ids, References, WritableFile
from oncue.pickles.unpicklable import explained
from oncue.protocol.buffers import Buffer, OutOfBand
from oncue.protocol.codec import DECODE_ERRORS, INT_MAX, INT_MIN, build_decoders
from oncue.protocol.records import INLINE_BYTES, Stored
from oncue.protocol.run_options import TaskFile, TaskFiles
from oncue.protocol.text_keys import has_text_keys

MSGPACK, PICKLE, REF, FILES = b"m", b"p", b"r", b"f"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_SCALARS = frozenset((type(None), bool, float, str, bytes))
_DEPTH = 64  # of lists and dicts in one another
BODY_BYTES = 128 * 1024  # of a pickle whose buffers are apart
MOST_BLOBS = 1_000  # of one call


class BlobName(Stored, frozen=True):
    """A blob of a payload."""

    sha256: str  # hex, of the content
    size_bytes: int


class Ref(Stored, frozen=True):
    """A payload in the blob store.

    With a `body`: a pickle whose buffers are the blob `sha256` and those of `more`, in this order.
    """

    sha256: str  # hex, of the content
    size_bytes: int
    store: str = ""  # "": the server's own
    body: bytes = b""
    more: Annotated[tuple[BlobName, ...], msgspec.Meta(max_length=MOST_BLOBS)] = ()

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        """All blobs of the payload."""
        return (BlobName(self.sha256, self.size_bytes), *self.more)

    @property
    def total_bytes(self) -> int:
        return len(self.body) + self.size_bytes + sum(blob.size_bytes for blob in self.more)


class WithFiles(Stored, frozen=True):
    """A task's result and its files."""

    value: bytes  # a payload
    files: TaskFiles = ()
    shell: bool = False  # the value is a ShellResult as a mapping


class BlobSource(Protocol):
    """Blobs of a payload that is decoded. Its methods raise BlobMissing."""

    def read(self, sha256: str) -> bytes:
        """Return a blob's content."""
        ...

    def buffer(self, blob: BlobName) -> Any:
        """Return the buffer that the blob holds, see oncue.protocol.buffers."""
        ...


class PackedApart(NamedTuple):
    """A packed value, with its large buffers apart.

    `objects`: blobs of the ObjectRefs in it, which are in the blob store already. `modules`: those
    that its pickle names.
    """

    body: bytes
    buffers: list[Buffer]
    objects: list[BlobName]
    modules: frozenset[str] = frozenset()


def is_plain(value: Any) -> bool:
    """Return True if msgpack reproduces the value exactly.

    All types are supported, and no list or dict is referenced twice: the copy would have two.
    """
    kind = type(value)
    if kind is list or kind is dict:
        return _plain_inside(value, kind, _DEPTH, set())
    return kind in _SCALARS or (kind is int and INT_MIN <= value <= INT_MAX)


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
            if not INT_MIN <= v <= INT_MAX:
                return False
        elif not ((kind is list or kind is dict) and _plain_inside(v, kind, depth - 1, seen)):
            return False
    return True


def pack(value: Any, *, as_data: bool = False, ids: Ids = Ids.KEPT, references: References | None = None) -> bytes:
    """Encode one value, inline whatever its size (see `needs_blob`).

    `as_data`: the value was read from JSON, where no list is referenced twice. `ids`,
    `references`: see oncue.pickles.pickler. Raises CannotPack if the value cannot be pickled.
    """
    plain = has_plain_types(value) if as_data else is_plain(value)
    if plain and (packed := _pack_plain(value)) is not None:
        return packed
    file = io.BytesIO()
    pack_into(file, value, ids=ids, references=references)
    return file.getvalue()


def _pack_plain(value: Any) -> bytes | None:
    """Encode a plain value; None for a lone surrogate: msgpack has none, pickle has."""
    try:
        return MSGPACK + _encode(value)
    except UnicodeEncodeError:
        return None


def pack_into(
    file: WritableFile,
    value: Any,
    *,
    ids: Ids = Ids.KEPT,
    apart: OutOfBand | None = None,
    references: References | None = None,
) -> None:
    """Write a value's pickle as a payload. `apart` takes its large buffers.

    Raises CannotPack, and OncueError and OSError of the file.
    """
    try:
        file.write(PICKLE)
        Pickler(file, ids, buffers=apart.take if apart is not None else None, references=references).dump(value)
    except (OncueError, OSError):
        raise
    except Exception as e:
        message, remedy = explained(value, e)
        raise CannotPack(message, remedy=remedy) from (None if isinstance(e, OpenFile) else e)


def pack_args(args: tuple[Any, ...], kwargs: dict[str, Any], references: References | None = None) -> bytes:
    """Encode the arguments of a call. Raises CannotPack, which names the argument.

    `references`: gets what their pickle refers to.
    """
    references = References() if references is None else references
    try:
        return pack([list(args), kwargs], ids=Ids.CONTENT, references=references)
    except CannotPack as e:
        error = e
    raise _named(args, kwargs) or error  # outside of the handler: a traceback then shows one error


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> CannotPack | None:
    """Return the error of the first argument that cannot be packed, with its name."""
    named = {f"argument {n}": value for n, value in enumerate(args, 1)}
    named |= {f"argument {name}": value for name, value in kwargs.items()}
    for name, value in named.items():
        try:
            pack(value, ids=Ids.CONTENT, references=References())
        except CannotPack as own:
            error = CannotPack(f"{name}: {own.message}", remedy=own.remedy)
            error.__cause__, error.__suppress_context__ = own.__cause__, True
            return error
    return None


def pack_args_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedApart:
    """Encode the arguments of a call, as `pack_apart`.

    Raises CannotPack, which names the argument.
    """
    apart = OutOfBand()
    given = [[apart.wrap(arg) for arg in args], {name: apart.wrap(arg) for name, arg in kwargs.items()}]
    return _pack_apart(given, apart, lambda references: pack_args(args, kwargs, references))


def pack_apart(value: Any) -> PackedApart:
    """Encode a value, large buffers apart.

    Without buffers, the body may be too large to be sent inline (see `needs_blob`). Raises
    CannotPack.
    """
    apart = OutOfBand()
    return _pack_apart(apart.wrap(value), apart, lambda references: pack(value, ids=Ids.CONTENT, references=references))


def _pack_apart(value: Any, apart: OutOfBand, pack_whole: Callable[[References], bytes]) -> PackedApart:
    """Pack a value whose large bytes `apart` has wrapped.

    `pack_whole` packs the original.
    """
    plain = not apart.has_wrapped and is_plain(value)
    if plain and (packed := _pack_plain(value)) is not None:
        return PackedApart(packed, [], [])
    references = References()
    buffers: list[Buffer] = []
    body = b""
    if not plain:
        file = io.BytesIO()
        with contextlib.suppress(CannotPack):  # pack_whole raises it again, with more to say
            pack_into(file, value, ids=Ids.CONTENT, apart=apart, references=references)
            body, buffers = file.getvalue(), apart.buffers
    small = len(body) + sum(buffer.size_bytes for buffer in buffers) <= INLINE_BYTES
    if not body or (buffers and (small or len(body) > BODY_BYTES)):
        references = References()
        body, buffers = pack_whole(references), []
    stored = list(dict.fromkeys(blob for each in references.objects for blob in blobs_of(each.payload)))
    if len(stored) + len(buffers) > MOST_BLOBS:
        raise CannotPack(f"the value refers to {len(stored):,} blobs", remedy=f"at most {MOST_BLOBS} a call: split it")
    return PackedApart(body, buffers, stored, frozenset(references.modules))


def needs_blob(payload: bytes) -> bool:
    """Return True if the payload is too large to be sent inline."""
    return len(payload) > INLINE_BYTES


def pack_ref(ref: Ref) -> bytes:
    return REF + _encode(ref)


def blobs_of(payload: bytes) -> tuple[BlobName, ...]:
    """Return the blobs that a payload needs; none if it cannot be decoded."""
    try:
        ref, files = ref_of(payload), files_of(payload)
    except Undecodable:
        return ()
    apart = tuple(BlobName(f.sha256, f.size_bytes) for f in files)
    return ref.blobs + apart if ref is not None else apart


def pack_with_files(value: bytes, files: tuple[TaskFile, ...], shell: bool = False) -> bytes:
    return FILES + _encode(WithFiles(value, files, shell))


def with_files(payload: bytes) -> WithFiles:
    """Return a result and its files; most results have none. Raises Undecodable."""
    if payload[:1] != FILES:
        return WithFiles(payload)
    try:
        found = msgspec.msgpack.decode(payload[1:], type=WithFiles)
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a result with files: {e}") from None
    if found.value[:1] == FILES:
        raise Undecodable("a result with files in another one")
    return found


def files_of(payload: bytes) -> tuple[TaskFile, ...]:
    """Return the files of a result. Raises Undecodable."""
    return with_files(payload).files if payload[:1] == FILES else ()


def ref_of(payload: bytes) -> Ref | None:
    """Return the payload's Ref; None if it is inline. Raises Undecodable."""
    if payload[:1] == FILES:
        payload = with_files(payload).value
    if payload[:1] != REF:
        return None
    try:
        return msgspec.msgpack.decode(payload[1:], type=Ref)
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a reference to a blob: {e}") from None


def unpack(payload: bytes, source: BlobSource | None = None, *, at_home: bool = True) -> Any:
    """Decode a value. **Runs code** for pickles.

    Only workers, and clients that trust the sender, may call this. `at_home`: this process is a
    program of the person whose value it is (see oncue.pickles.reader). Raises Undecodable if the
    bytes are not a payload, or refer to a blob and `source` is None; OtherPython; any error of
    unpickling.
    """
    letter = payload[:1]
    if letter == FILES:
        return unpack(with_files(payload).value, source, at_home=at_home)
    if letter == MSGPACK:
        try:
            return _decode(payload[1:])
        except DECODE_ERRORS as e:
            raise Undecodable(f"not a msgpack payload: {e}") from None
    if letter == PICKLE:
        return loads(payload, 1, at_home=at_home)
    ref = ref_of(payload)
    if ref is None or source is None:
        raise Undecodable(f"not a payload that can be read here (it starts with {letter!r})")
    if ref.body:
        return loads(ref.body, 1, at_home=at_home, buffers=map(source.buffer, ref.blobs))
    return unpack(source.read(ref.sha256), None, at_home=at_home)


def unpack_args(payload: bytes, source: BlobSource | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Decode the arguments of a call, in a worker. **Runs code** for pickles.

    Raises as `unpack`.
    """
    args, kwargs = unpack(payload, source, at_home=False)
    return tuple(args), kwargs


def peek(payload: bytes) -> tuple[bool, Any]:
    """Return (True, value) for msgpack, otherwise (False, note for people).

    Runs no code. Raises Undecodable.
    """
    letter = payload[:1]
    if letter == FILES:
        return peek(with_files(payload).value)
    if letter == MSGPACK:
        if not has_text_keys(payload[1:]):
            raise Undecodable("a dict has keys that are no texts")
        return True, unpack(payload)
    if letter == PICKLE:
        return False, f"a pickled value of {len(payload) - 1:,} bytes"
    ref = ref_of(payload)
    if ref is not None:
        return False, f"a value of {ref.total_bytes:,} bytes in the blob store"
    return False, "nothing"


build_decoders(globals())
