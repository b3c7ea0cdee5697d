"""msgspec learns how a Struct is decoded when one is decoded first. It is not made for two threads that do so at once: one
reads types that the other has not filled in yet, and the process dies of a segmentation fault (seen with 0.22: one of some
300 servers that started under load). So modules whose Structs several threads decode end with `prepare(globals())`: nobody
else has them while they are imported."""

from __future__ import annotations

from typing import Any

import msgspec


def prepare(module: dict[str, Any]) -> None:
    """Let msgspec learn all Structs that the module defines."""
    for thing in list(module.values()):
        if isinstance(thing, type) and issubclass(thing, msgspec.Struct) and thing.__module__ == module["__name__"]:
            msgspec.msgpack.Decoder(thing)
