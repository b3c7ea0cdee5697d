"""Kinds of SQLite errors: a damaged file, a full disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from oncue.disk.space import NO_SPACE, is_nearly_full


def is_damage(error: BaseException | None) -> bool:
    """Return True if SQLite found that the file is damaged."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Return True if SQLite, or an OSError, says that the folder's disk is full."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    code = _code(error)
    # An exhausted quota, or shared memory that cannot grow, is reported as an I/O error.
    return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and is_nearly_full(folder))


def _code(error: BaseException | None) -> int:
    """Return the primary result code; 0 if the error is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
