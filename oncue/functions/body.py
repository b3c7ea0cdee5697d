"""FunctionBody: the stored form of a function. Its hash is the function's id."""

from __future__ import annotations

import msgspec

from oncue.protocol.codec import build_decoders, decode
from oncue.protocol.records import Parameter, Stored


class FunctionBody(Stored, frozen=True):
    """Pickle, source and metadata of a function."""

    v: int
    name: str
    qualname: str
    module: str
    python: str  # version of the bytecode in the pickle, as "3.11"
    source: str  # for people, and to build `entry` from
    pickle: bytes  # cloudpickle of the callable
    siblings: dict[str, str]  # relative path -> source: "tomo.py", "pkg/__init__.py"
    requires: tuple[str, ...]  # top-level modules that it imports and that are not sent
    oncue: str  # version of oncue that packed it
    #: Name of the function in `source`, run as a module; "": the source is for people only.
    entry: str = ""
    portable: bool = False  # no bytecode, only names, in the pickle: fits any Python
    file: str = ""  # name of the file with `source`
    #: Name of a file -> its lines with the pickle's functions; for tracebacks.
    lines: dict[str, str] = msgspec.field(default_factory=dict)


class Packed(msgspec.Struct, frozen=True):
    """A packed function, ready to be registered."""

    id: str  # SHA-256 of body, hex
    body: bytes  # msgpack of FunctionBody
    name: str
    signature: str
    doc: str
    file: str
    parameters: tuple[Parameter, ...] | None = None  # None: unknown


def describe(body: bytes) -> FunctionBody:
    """Decode a body; its pickle stays bytes. Raises Undecodable."""
    return decode(FunctionBody, body)


build_decoders(globals())
