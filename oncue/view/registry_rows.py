"""The registry's records -> rows: the newest of each key, in the log's order; functions get their versions here."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from oncue.protocol.codec import encode
from oncue.protocol.records import Deployment, EndpointRecord, FunctionRecord, Registry, RuleSwitch

_TABLES = ("function", "endpoint", "deployment", "switch", "token")


def put(db: sqlite3.Connection, record: Registry, key: bytes, pos: int) -> None:
    """`pos` orders the records: see `place`."""
    if isinstance(record, FunctionRecord):
        _function(db, record, key, pos)
    elif isinstance(record, EndpointRecord):
        _newest(db, "endpoint", {"id": record.id, "name": record.name}, key, pos, record)
    elif isinstance(record, Deployment):
        _newest(db, "deployment", {"label": record.label}, key, pos, record)
    elif isinstance(record, RuleSwitch):
        _newest(db, "switch", {"rule": record.rule}, key, pos, record)
    else:
        _newest(db, "token", {"id": record.id, "hash": record.hash}, key, pos, record)


def remove(db: sqlite3.Connection, key: bytes) -> None:
    """An empty record: its key is deleted."""
    if key:
        for table in _TABLES:
            db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))


def _newest(
    db: sqlite3.Connection, table: str, columns: dict[str, Any], key: bytes, pos: int, record: Registry
) -> None:
    names = (*columns, "pos", "key", "record")
    marks = ", ".join("?" * len(names))
    db.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks})",
        (*columns.values(), pos, key, encode(record)),
    )


def _function(db: sqlite3.Connection, f: FunctionRecord, key: bytes, pos: int) -> None:
    """A content that its owner has registered under this name before changes nothing. A version that the record
    brings counts, unless an older record has it: then, as without one, the next free."""
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
