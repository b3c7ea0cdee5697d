"""ObjectRef: a value in the blob store, which many calls share.

`Client.put` makes it. As an argument, also inside of lists and dicts, it becomes the value at the
worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from oncue.errors import Undecodable

R = TypeVar("R")

#: Returns the value of a payload. A worker sets it: blobs are at hand there.
load: Callable[[bytes], Any] | None = None


class ObjectRef(Generic[R]):
    """Reference to a value that was stored once.

    It can be pickled, also for another program.
    `payload`: the packed value; large content is in the blob store. `modules`: those that its
    pickle names, as far as this program knows.
    """

    __slots__ = ("modules", "payload", "shown", "size_bytes")

    def __init__(self, payload: bytes, size_bytes: int, shown: str, modules: frozenset[str] = frozenset()) -> None:
        self.payload, self.size_bytes, self.shown, self.modules = payload, size_bytes, shown, modules

    def __repr__(self) -> str:
        return f"<ObjectRef of {self.shown}, {self.size_bytes:,} bytes>"

    def __getstate__(self) -> tuple[bytes, int, str]:
        return self.payload, self.size_bytes, self.shown

    def __setstate__(self, state: tuple[bytes, int, str]) -> None:
        self.payload, self.size_bytes, self.shown = state
        self.modules = frozenset()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self.payload == other.payload

    def __hash__(self) -> int:
        return hash(self.payload)


def load_object(payload: bytes) -> Any:
    """Return the value of an ObjectRef. Unpickling an argument calls this.

    Raises Undecodable, BlobMissing, and what unpickling raises.
    """
    if load is None:
        raise Undecodable("an ObjectRef's value is loaded only where a task runs")
    return load(payload)
