"""Opens the files of an embedded log: lock, database, and a check for damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec

from oncue.disk.durable_files import sync_new
from oncue.disk.sqlite_errors import is_damage
from oncue.errors import LogError, NetworkMount, OncueError
from oncue.log.folder_lock import lock_folder
from oncue.log.sqlite.ballast import Ballast
from oncue.log.sqlite.database import SUSPECT, explain, open_writer
from oncue.log.sqlite.mounts import network_mount
from oncue.log.sqlite.salvage import CHECKED_BYTES, finish, salvage, structural_damage
from oncue.log.sqlite.state import DamagedState, StoredState, load
from oncue.processes.file_lock import FileLock


def open_files(path: Path) -> tuple[FileLock, sqlite3.Connection, StoredState]:
    """Open the log at this path; make the folder and the file if they are missing.

    A damaged database is replaced by what is readable of it. Raises LogLocked, NetworkMount,
    DiskFull, LogError.
    """
    folder = path.parent
    kind = network_mount(folder)
    if kind is not None:
        raise NetworkMount(
            f"{folder} is on a network mount ({kind})",
            remedy="put the data folder on a local disk (ONCUE_DATA=/var/tmp/... or the machine's scratch disk)",
            folder=str(folder),
            kind=kind,
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_folder(folder)
    except OncueError:
        raise
    except OSError as e:
        raise explain(e, path) from e
    try:
        finish(path)
        db, stored = _open_sound(path)
        try:
            os.chmod(path, 0o600)
            sync_new(path)
            Ballast(folder).create()
            return lock, db, stored
        except BaseException:
            db.close()
            raise
    except BaseException as e:
        lock.release()
        if isinstance(e, sqlite3.Error | msgspec.MsgspecError | OSError):
            raise explain(e, path) from e
        raise


def _open_sound(path: Path) -> tuple[sqlite3.Connection, StoredState]:
    suspect = path.with_name(SUSPECT)
    why = ""
    # Before the first write: SQLite would take pages in use for free ones.
    if path.exists() and (suspect.exists() or path.stat().st_size <= CHECKED_BYTES):
        why = structural_damage(path)
    if not why:
        try:
            found = _load(path)
            suspect.unlink(missing_ok=True)
            return found
        except (DamagedState, LogError, sqlite3.DatabaseError) as e:
            cause = e.__cause__ if isinstance(e, LogError) else e
            if not isinstance(e, DamagedState) and not is_damage(cause):
                raise
            why = str(cause)
    salvage(path, why)
    suspect.unlink(missing_ok=True)
    try:
        return _load(path)
    except DamagedState as e:
        raise explain(sqlite3.DatabaseError(str(e)), path) from None


def _load(path: Path) -> tuple[sqlite3.Connection, StoredState]:
    db = open_writer(path)
    try:
        return db, load(db)
    except BaseException:
        db.close()
        raise
