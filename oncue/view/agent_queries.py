"""Queries that decide what an endpoint's agent may fetch."""

from __future__ import annotations

import sqlite3

from oncue.protocol.codec import decode
from oncue.protocol.payload import REF
from oncue.protocol.records import FunctionRecord

_HAS_TASK = (
    "SELECT 1 FROM span WHERE function = (SELECT id FROM word WHERE text = ?)"
    " AND endpoint = (SELECT id FROM word WHERE text = ?) LIMIT 1"
)
_HAS_ARGUMENT = (
    "SELECT 1 FROM task WHERE state = 0 AND known = 1 AND endpoint = (SELECT id FROM word WHERE text = ?)"
    " AND substr(args, 1, 1) = ? AND instr(args, ?) > 0 LIMIT 1"
)


def function_for(
    db: sqlite3.Connection, sha256: str, endpoint: str, owner: str
) -> tuple[FunctionRecord | None, bytes, bool]:
    """Return (function of this hash, its body, True if the endpoint may run it).

    It may run the functions of its owner, and those of tasks that were assigned to it.
    """
    row = db.execute(
        "SELECT record, body, owner = ? FROM function WHERE id = ? ORDER BY owner = ? DESC, pos DESC LIMIT 1",
        (owner, sha256, owner),
    ).fetchone()
    if row is None:
        return None, b"", False
    permitted = bool(row[2]) or db.execute(_HAS_TASK, (sha256, endpoint)).fetchone() is not None
    return decode(FunctionRecord, row[0]), row[1], permitted


def has_open_argument(db: sqlite3.Connection, endpoint: str, sha256: str) -> bool:
    """Return True if the arguments of an open task of the endpoint are in this blob."""
    return db.execute(_HAS_ARGUMENT, (endpoint, REF, sha256.encode())).fetchone() is not None
