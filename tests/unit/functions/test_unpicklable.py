"""Names of what cannot be pickled."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from tests.unit.functions.other_process import (
    cannot_pack,
)


def test_unpicklable_variable_is_named(tmp_path: Path) -> None:
    import socket

    lock, numbers = threading.Lock(), (i for i in range(3))
    with open(tmp_path / "x", "w") as handle, socket.socket() as line:
        assert "'lock'" in cannot_pack(lambda: lock).message
        assert "lock" in cannot_pack(lambda: lock).message
        assert "'handle'" in cannot_pack(lambda: handle.read()).message
        assert "open it inside" in cannot_pack(lambda: handle.read()).remedy
        assert "'line'" in cannot_pack(lambda: line.send(b"")).message
        assert "'numbers'" in cannot_pack(lambda: list(numbers)).message
        assert "list(" in cannot_pack(lambda: list(numbers)).remedy

        def helper() -> Any:
            return lock

        assert "'lock'" in cannot_pack(lambda: helper()).message
        assert "argument 0 of the partial" in cannot_pack(functools.partial(print, lock)).message
        assert "default value 0" in cannot_pack(lambda x=lock: x).message
        box = {"inner": [1, lock]}
        assert "element 1" in cannot_pack(lambda: box).message


def test_unpicklable_attribute_is_named() -> None:
    class Camera:
        def __init__(self) -> None:
            self.guard = threading.Lock()

        def snap(self) -> None: ...

    assert "'guard' of Camera" in cannot_pack(Camera().snap).message
