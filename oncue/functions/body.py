"""FunctionBody: the stored form of a function. Its hash is the function's id."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import msgspec

from oncue.errors import Undecodable
from oncue.functions.shell.spec import ShellSpec
from oncue.protocol.codec import build_decoders, decode
from oncue.protocol.records import Parameter, Stored
from oncue.protocol.run_options import RunOptions


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
    fresh: bool = False  # each task in a process that has run nothing else
    memory_bytes: int = 0  # that a task may use; 0: no limit
    detached: bool = False  # child processes may outlive the task
    #: Relative path -> content of data files and compiled modules that were named.
    files: dict[str, bytes] = msgspec.field(default_factory=dict)
    #: Module -> file name of the user's compiled modules that do not travel.
    compiled: dict[str, str] = msgspec.field(default_factory=dict)
    run: RunOptions | None = None
    shell: ShellSpec | None = None  # a script, instead of the pickle
    mpi: ShellSpec | None = None  # a script that runs in each of the task's ranks

    @property
    def script(self) -> ShellSpec | None:
        """The script, if this is no Python function."""
        return self.shell or self.mpi


class FunctionProperties(NamedTuple):
    """The part of a body that says how its tasks are run."""

    fresh: bool = False
    memory_bytes: int = 0
    detached: bool = False
    run: RunOptions | None = None


_TYPES = get_type_hints(FunctionProperties)
_Properties = msgspec.defstruct(
    "_Properties",
    [
        (name, _TYPES.get(name, msgspec.Raw), FunctionProperties._field_defaults.get(name, msgspec.Raw()))
        for name in FunctionBody.__struct_fields__
    ],
    array_like=True,
)


def properties(body: bytes) -> FunctionProperties:
    """Read a body's properties without decoding the rest.

    Defaults if it cannot be read.
    """
    try:
        found: Any = decode(_Properties, body)
    except Undecodable:
        return FunctionProperties()
    return FunctionProperties(found.fresh, found.memory_bytes, found.detached, found.run)


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
