"""What is stored of a function, and its name: the hash of that."""

from __future__ import annotations

import msgspec

from oncue.protocol.codec import build_decoders, decode
from oncue.protocol.records import Parameter, Stored


class FunctionBody(Stored, frozen=True):
    v: int
    name: str
    qualname: str
    module: str
    python: str  # "3.11": whose bytecode is in the pickle
    source: str  # what people read, and what `entry` is built from
    pickle: bytes  # cloudpickle of the callable
    siblings: dict[str, str]  # relative path -> source: "tomo.py", "pkg/__init__.py"
    requires: tuple[str, ...]  # top-level modules that it imports and that do not travel with it
    oncue: str  # version that packed it
    entry: str = ""  # the name to take after `source` was run as a module; "": the source is for reading only
    portable: bool = False  # the pickle holds names only, no bytecode: good for any Python
    file: str = ""  # name of the file that `source` is of
    #: Name of a file -> of its lines those that the pickle's functions have; for tracebacks.
    lines: dict[str, str] = msgspec.field(default_factory=dict)


class Packed(msgspec.Struct, frozen=True):
    id: str  # SHA-256 of body, hex
    body: bytes  # msgpack of FunctionBody
    name: str
    signature: str
    doc: str
    file: str
    parameters: tuple[Parameter, ...] | None = None  # what a caller must give and may; None: not known


def describe(body: bytes) -> FunctionBody:
    """What the body says of itself; its pickle stays bytes. Raises Undecodable."""
    return decode(FunctionBody, body)


build_decoders(globals())
