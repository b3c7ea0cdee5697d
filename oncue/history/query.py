"""Read-only queries of a history file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oncue.errors import Invalid, NotFound

_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE))
_PRAGMAS = frozenset(
    ("table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list", "data_version")
)
_REMEDY = 'the tables are in docs/history.md, and: oncue history query "select sql from sqlite_schema"'


def query(path: Path, text: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Run one SELECT; return the names of its columns, and its rows as they are read.

    Raises NotFound, Invalid.
    """
    if not path.is_file():
        raise NotFound(f"there is no file {path}", remedy=f"make it: oncue history export {path}")
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0)
        db.set_authorizer(_authorize)
        cursor = db.execute(text)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as e:
        raise _wrong(e) from e
    if cursor.description is None:
        raise Invalid("the query is no SELECT", remedy='for example: oncue history query "select * from tasks"')
    return [column[0] for column in cursor.description], _rows(cursor)


def _rows(cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
    try:
        yield from cursor
    except sqlite3.Error as e:
        raise _wrong(e) from e


def _wrong(e: Exception) -> Invalid:
    text = str(e)
    if any(word in text for word in ("prohibited", "not authorized", "authorization denied")):
        return Invalid(f"the query does more than read: {text}", remedy="give one SELECT")
    return Invalid(f"the query cannot be run: {text}", remedy=_REMEDY)


def _authorize(action: int, name: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """Permit reading: no ATTACH, which could make or read other files, and no writing.

    SQLite asks for an update of sqlite_master when it declares a table of the full-text search.
    Nobody can do one.
    """
    if action == sqlite3.SQLITE_UPDATE and name == "sqlite_master":
        return sqlite3.SQLITE_OK
    if action in _ALLOWED or (action == sqlite3.SQLITE_PRAGMA and name in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
