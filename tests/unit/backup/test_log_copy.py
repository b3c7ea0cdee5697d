"""copy_log: incremental, one state, never over a copy of another log."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from oncue.backup.log_copy import copy_log
from oncue.errors import Conflict, LogError
from oncue.log import Record, Topic, open_log
from oncue.log.sqlite.inspection import problems

TOPICS = {"events": Topic(partitions=2), "registry": Topic(compact=True)}


def write(folder: Path, names: str, *, truncate: int = 0, housekeep: bool = False) -> None:
    async def work() -> None:
        log = await open_log(f"sqlite://{folder}")
        await log.ensure(TOPICS)
        for name in names:
            await log.append("events", [Record(name.encode(), name.encode())])
            await log.append("registry", [Record(name.encode(), b"one key")])
        if truncate:
            await log.truncate("events", 0, truncate)
        if housekeep:
            await log.housekeep()
        await log.close()

    asyncio.run(work())


def rows(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT topic, partition, first, count, crc FROM batches ORDER BY 1, 2, 3").fetchall()


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_a_copy_follows_the_log(tmp_path: Path) -> None:
    source, target = tmp_path / "log" / "log.db", tmp_path / "copy.db"
    for step in (
        {"names": "abcdef"},
        {"names": "ghi"},
        {"names": "", "truncate": 2},
        {"names": "jk", "housekeep": True},
    ):
        write(tmp_path / "log", **step)  # type: ignore[arg-type]
        entry = copy_log(source, target, quiet)
        assert rows(target) == rows(source)
        assert problems(target) == []
    assert entry.ends["registry/0"] == 11


def test_a_server_appends_while_its_log_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "log" / "log.db", tmp_path / "copy.db"
    write(tmp_path / "log", "abc")
    for name in ("d", "e"):  # the first copy, and a later one
        before = rows(source)
        copying: list[str] = []

        def progress(what: str, done: int, total: int, name: str = name, copying: list[str] = copying) -> None:
            if not copying:
                copying.append(what)
                write(tmp_path / "log", name)

        copy_log(source, target, progress)

        assert copying
        assert rows(target) == before
        assert len(rows(source)) == len(before) + 2
        copy_log(source, target, quiet)
        assert rows(target) == rows(source)


def test_a_copy_of_another_log_is_refused_and_stays(tmp_path: Path) -> None:
    write(tmp_path / "log", "abc")
    write(tmp_path / "other", "abc")
    copy_log(tmp_path / "log" / "log.db", tmp_path / "copy.db", quiet)
    before = rows(tmp_path / "copy.db")
    with pytest.raises(Conflict, match="another log"):
        copy_log(tmp_path / "other" / "log.db", tmp_path / "copy.db", quiet)
    assert rows(tmp_path / "copy.db") == before


def test_a_copy_of_a_later_state_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "log", "abc")
    earlier = (tmp_path / "log" / "log.db").read_bytes()
    write(tmp_path / "log", "defghi")
    copy_log(tmp_path / "log" / "log.db", tmp_path / "copy.db", quiet)
    (tmp_path / "log" / "log.db").write_bytes(earlier)
    write(tmp_path / "log", "xyz")
    with pytest.raises(Conflict, match="later state"):
        copy_log(tmp_path / "log" / "log.db", tmp_path / "copy.db", quiet)


def test_a_damaged_row_ends_the_copy_and_the_former_state_stays(tmp_path: Path) -> None:
    source = tmp_path / "log" / "log.db"
    write(tmp_path / "log", "abc")
    copy_log(source, tmp_path / "copy.db", quiet)
    before = rows(tmp_path / "copy.db")
    write(tmp_path / "log", "defgh")
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("UPDATE batches SET blob = x'00' WHERE topic = 1 AND first = (SELECT max(first) FROM batches)")
        db.execute("UPDATE batches SET blob = x'00' WHERE topic = 2 AND first = 5")
    with pytest.raises(LogError, match="does not have its checksum"):
        copy_log(source, tmp_path / "copy.db", quiet)
    assert rows(tmp_path / "copy.db") == before
    assert problems(tmp_path / "copy.db") == []
