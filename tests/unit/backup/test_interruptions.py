"""Backups that were killed or run, and backups with parts missing: what a restore makes of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from oncue.backup import backup
from oncue.backup.backup import back_up, locked
from oncue.backup.restore import restore, verify
from oncue.config import Settings, load_settings
from oncue.errors import Conflict, Invalid, NotFound
from oncue.log.sqlite.inspection import problems
from tests.unit.backup.test_log_copy import quiet, rows, write


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write(tmp_path / "data" / "log", "abcdef")
    (tmp_path / "data" / "bridge.key").write_text("key")
    return load_settings({"data": str(tmp_path / "data")})


def put_blob(data: Path, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    place = data / "blobs" / name[:2] / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return name


def test_nothing_is_restored_from_a_folder_that_a_backup_writes(settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(settings, copy, quiet)
    with locked(copy):
        for damaged in (False, True):
            with pytest.raises(Conflict, match="a backup to"):
                restore(copy, tmp_path / "new", quiet, damaged=damaged)
        with pytest.raises(Conflict, match="a backup to"):
            verify(copy, quiet)
    verify(copy, quiet)


def test_half_a_transaction_is_not_restored(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "copy", quiet)
    before = rows(tmp_path / "copy" / "log.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "log.db", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size=1")  # so that pages reach the disk before the commit
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE batches SET crc = crc + 1")
        for n in range(1000):
            db.execute(
                "INSERT INTO batches SELECT topic, partition, ?, 1, 1, 0, NULL, ? FROM batches LIMIT 1",
                (n + 50, bytes(9000)),
            )
        shutil.copytree(tmp_path / "copy", tmp_path / "killed")  # as a kill would leave it
        db.execute("ROLLBACK")
    assert (tmp_path / "killed" / "log.db-journal").stat().st_size

    restore(tmp_path / "killed", tmp_path / "new", quiet, damaged=True)

    assert problems(tmp_path / "new" / "log" / "log.db") == []
    assert rows(tmp_path / "new" / "log" / "log.db") == before


def test_a_log_that_was_copied_by_a_killed_backup_has_its_blobs(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    put_blob(data, b"old")
    back_up(settings, copy, quiet)
    new: list[str] = []
    real = backup.copy_log

    def killed(*args: object) -> None:
        new.append(put_blob(data, b"of a task that came just before"))
        write(data / "log", "xyz")
        real(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "copy_log", killed)
    with pytest.raises(KeyboardInterrupt):
        back_up(settings, copy, quiet)

    verify(copy, quiet)
    assert rows(copy / "log.db") == rows(data / "log" / "log.db")
    assert (copy / "blobs" / new[0][:2] / new[0]).exists()


@pytest.mark.parametrize("place", ["../../made", "/tmp/made"])
def test_a_backup_that_names_files_outside_is_refused(settings: Settings, tmp_path: Path, place: str) -> None:
    copy = tmp_path / "copy"
    back_up(settings, copy, quiet)
    manifest = json.loads((copy / "backup.json").read_text())
    manifest["files"][place] = manifest["files"]["bridge.key"]
    (copy / "backup.json").write_text(json.dumps(manifest))
    for damaged in (False, True):
        with pytest.raises(Invalid, match="outside"):
            restore(copy, tmp_path / "a" / "new", quiet, damaged=damaged)


def test_a_folder_is_not_restored_to_itself(settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(settings, copy, quiet)
    before = sorted(copy.rglob("*"))
    for data in (copy, copy / "new", tmp_path):
        with pytest.raises(Invalid, match="contain each other"):
            restore(copy, data, quiet)
    with pytest.raises(NotFound, match="no backup"):
        restore(tmp_path / "data", tmp_path / "new", quiet)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("missing", ["log.db", "files-1/bridge.key", "blobs", "lock"])
def test_what_is_missing_is_left_out_if_that_is_asked(settings: Settings, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "copy"
    put_blob(tmp_path / "data", b"content")
    back_up(settings, copy, quiet)
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    restore(copy, tmp_path / "new", quiet, damaged=True)

    there = {"log.db": "log/log.db", "files-1/bridge.key": "bridge.key", "blobs": "blobs"}
    for name, place in there.items():
        assert (tmp_path / "new" / place).exists() == (name != missing)
