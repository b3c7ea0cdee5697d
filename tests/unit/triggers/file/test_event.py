"""EventMaker: the CloudEvent of a ready file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from oncue.triggers.file.event import EventMaker
from oncue.triggers.file.options import FileOptions, FileSpec, read_options
from oncue.triggers.file.stability import fingerprint


def spec(**options: object) -> FileSpec:
    return read_options("detector", msgspec.convert({"path": "/data", **options}, FileOptions))


def test_the_event_id_follows_from_trigger_path_and_state(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"1")
    options = {"path": str(tmp_path)}

    def made(name: str = "detector", size: int = 1) -> str:
        st = path.stat()
        seen = fingerprint(st)._replace(size=size)
        return EventMaker(name, spec(**options)).make(("", "a.h5"), st, seen, "rescan", 1, 2).id

    assert made() == made()
    os.chmod(path, 0o600)  # another ctime: the same file
    assert made() == made()
    assert len({made(), made("other"), made(size=2)}) == 3
