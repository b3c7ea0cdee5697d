"""Spans: rows of `task` with one call, added together. See schema.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from oncue.view.calls import CallRef

_INSERT = "INSERT INTO span (first, last, accepted_us, call, endpoint, function, name, owner, rule) VALUES (?,?,?,?,?,?,?,?,?)"


def add(db: sqlite3.Connection, first: int, last: int, accepted_us: int, ref: CallRef) -> None:
    db.execute(_INSERT, (first, last, accepted_us, *ref))


def move(db: sqlite3.Connection, n: int, accepted_us: int, ref: CallRef) -> None:
    """Row n has this call from now on; before it may have had another, or none."""
    row = db.execute("SELECT * FROM span WHERE first <= ? ORDER BY first DESC LIMIT 1", (n,)).fetchone()
    if row is not None and row[1] >= n:
        first, last, call, accepted, *words = row
        if call == ref.id:
            return
        db.execute("DELETE FROM span WHERE first = ?", (first,))
        if first < n:
            db.execute(_INSERT, (first, n - 1, accepted, call, *words))
        if n < last:
            db.execute(_INSERT, (n + 1, last, accepted, call, *words))
    add(db, n, n, accepted_us, ref)


def add_rows(db: sqlite3.Connection, rows: Sequence[tuple[int, int, CallRef]]) -> None:
    """Spans for new rows (n, accepted_us, call), in order of n: neighbours of one call share one."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][0] != rows[i - 1][0] + 1 or rows[i][2].id != rows[start][2].id:
            add(db, rows[start][0], rows[i - 1][0], rows[start][1], rows[start][2])
            start = i
