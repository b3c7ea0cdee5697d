"""Spans: ranges of consecutive `task` rows with the same call. See schema.py.

The tasks of a span were accepted within SPAN_US, so that a list of a period reads few others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from oncue.view.interning import CallRef

SPAN_US = 600_000_000  # 10 minutes

_INSERT = (
    "INSERT INTO span (first, last, accepted_us, call, endpoint, function, name, owner, rule)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_EXTEND = "UPDATE span SET last = ?, accepted_us = max(accepted_us, ?) WHERE first = ? AND last = ?"


class Spans:
    """Writes the table `span`. Call `reset` after a rollback."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.reset()

    def reset(self) -> None:
        self._newest = (0, 0, 0)  # first, last, call of the latest span
        self._oldest_us = 0  # and when its first task was accepted

    def add(self, first: int, last: int, accepted_us: int, ref: CallRef) -> None:
        """Add new rows; extend the latest span if they follow it with the same call."""
        start, end, call = self._newest
        follows = end + 1 == first and call == ref.id and 0 <= accepted_us - self._oldest_us <= SPAN_US
        if follows and self._db.execute(_EXTEND, (last, accepted_us, start, end)).rowcount:
            self._newest = (start, last, call)
            return
        self._db.execute(_INSERT, (first, last, accepted_us, *ref))
        self._newest, self._oldest_us = (first, last, ref.id), accepted_us

    def add_rows(self, rows: Sequence[tuple[int, int, CallRef]]) -> None:
        """Add spans for rows (n, accepted_us, call) without one, ordered by n."""
        start = 0
        for i in range(1, len(rows) + 1):
            if i == len(rows) or rows[i] != (rows[i - 1][0] + 1, rows[start][1], rows[start][2]):
                self.add(rows[start][0], rows[i - 1][0], rows[start][1], rows[start][2])
                start = i

    def move(self, n: int, accepted_us: int, ref: CallRef) -> None:
        """Set the call of row n, which may have had another, or none."""
        self.reset()
        row = self._db.execute("SELECT * FROM span WHERE first <= ? ORDER BY first DESC LIMIT 1", (n,)).fetchone()
        if row is not None and row[1] >= n:
            first, last, call, accepted, *words = row
            self._db.execute("DELETE FROM span WHERE first = ?", (first,))
            if call == ref.id and accepted >= accepted_us > accepted - SPAN_US:
                self._db.execute(_INSERT, (first, last, accepted, call, *words))
                return
            if first < n:
                self._db.execute(_INSERT, (first, n - 1, accepted, call, *words))
            if n < last:
                self._db.execute(_INSERT, (n + 1, last, accepted, call, *words))
        self._db.execute(_INSERT, (n, n, accepted_us, *ref))
