"""Stores registry records as rows: the latest of each key, in log order.

Functions get their version numbers here.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from oncue.protocol.codec import encode
from oncue.protocol.records import Deployment, EndpointRecord, FunctionRecord, Registry, RuleSwitch

_TABLES = ("function", "endpoint", "deployment", "switch", "token")


def store(db: sqlite3.Connection, record: Registry, key: bytes, pos: int) -> None:
    """Store a record; `pos` is its place in the log (see `pack_position`)."""
    match record:
        case FunctionRecord():
            _function(db, record, key, pos)
        case EndpointRecord():
            _latest(db, "endpoint", {"id": record.id, "name": record.name}, key, pos, record)
        case Deployment():
            _latest(db, "deployment", {"label": record.label}, key, pos, record)
        case RuleSwitch():
            _latest(db, "switch", {"rule": record.rule}, key, pos, record)
        case _:
            _latest(db, "token", {"id": record.id, "hash": record.hash}, key, pos, record)


def remove(db: sqlite3.Connection, key: bytes) -> None:
    """Delete the rows of a key, whose record is empty."""
    if key:
        for table in _TABLES:
            db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))


def _latest(
    db: sqlite3.Connection, table: str, columns: dict[str, Any], key: bytes, pos: int, record: Registry
) -> None:
    names = (*columns, "pos", "key", "record")
    marks = ", ".join("?" * len(names))
    db.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})",
        (*columns.values(), pos, key, encode(record)),
    )


def _function(db: sqlite3.Connection, f: FunctionRecord, key: bytes, pos: int) -> None:
    """Store a function.

    Does nothing if its owner has registered this content under this name before. The function gets
    the record's version; if that is missing, or not above the latest, the next free one.
    """
    known = db.execute("SELECT 1 FROM function WHERE (owner, name, id) = (?, ?, ?)", (f.owner, f.name, f.id)).fetchone()
    if known:
        return
    of_name = "FROM function WHERE (owner, name) = (?, ?)"
    newest = db.execute(f"SELECT coalesce(max(version), 0) {of_name}", (f.owner, f.name)).fetchone()[0]
    version = f.version if f.version > newest else newest + 1
    meta = msgspec.structs.replace(f, version=version, body=b"")
    db.execute(
        "INSERT INTO function (pos, owner, name, version, id, key, record, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (pos, f.owner, f.name, version, f.id, key, encode(meta), f.body),
    )
