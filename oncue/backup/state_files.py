"""Copies the small files of a data folder, and databases that a server has open.

A server holds some databases (ledgers of triggers) with an exclusive lock, so SQLite cannot copy
them. Their files are copied, again if a checkpoint came in between. What the write-ahead log has
beyond its last whole transaction, SQLite ignores.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from oncue.backup.manifest import FileEntry
from oncue.disk.durable_files import sync_file
from oncue.errors import OncueError

#: Not in a backup: copied in another way, derived, or of this process.
LEFT_OUT = frozenset(
    {
        "log",
        "blobs",
        "aside",
        "view.db",
        "view.db-wal",
        "view.db-shm",
        "local.json",
        "lock",
        "server.log",
        "diverged.json",
    }
)
TRIES = 50


def state_files(data: Path) -> Iterator[Path]:
    """Yield the paths of the files to copy, relative to the data folder."""
    for path in sorted(data.rglob("*")):
        place = path.relative_to(data)
        if place.parts[0] in LEFT_OUT or place.parts[0].startswith((".", "view.")) or not path.is_file():
            continue
        if path.is_symlink() or place.name.endswith(("-wal", "-shm", ".new", ".aside")):
            continue
        if place.parts[0] == "endpoints" and not _of_endpoint(place):
            continue
        yield place


def _of_endpoint(place: Path) -> bool:
    """Return True for keys and settings; what an agent does now is not copied."""
    return len(place.parts) == 3 and place.suffix in (".key", ".json") and place.name != "status.json"


def copy_file(source: Path, target: Path) -> FileEntry:
    """Copy a file, with mode 600. Raises OSError, OncueError."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if source.suffix == ".db":
        _copy_database(source, target)
    else:
        shutil.copyfile(source, target)
    target.chmod(0o600)
    sync_file(target)
    return describe(target)


def describe(path: Path) -> FileEntry:
    """Return hash and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(digest.hexdigest(), file.tell())


def _copy_database(source: Path, target: Path) -> None:
    wal, copied_wal = source.with_name(source.name + "-wal"), target.with_name(target.name + "-wal")
    for attempt in range(TRIES):
        before = _stamp(source)
        shutil.copyfile(source, target)
        copied_wal.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(wal, copied_wal)
        if _stamp(source) == before and _is_sound(target):
            return
        time.sleep(0.02 * (attempt + 1))
    raise OncueError(
        f"{source} changes too fast to be copied", remedy="make the backup when fewer files arrive, or stop the server"
    )


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _is_sound(path: Path) -> bool:
    """Put the copied write-ahead log into the copied file; False if they do not fit."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False
