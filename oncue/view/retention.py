"""Forgetting what is older than the log's horizon, in bites: each a short transaction between groups of batches."""

from __future__ import annotations

import sqlite3

BITE = 5_000  # rows looked at in one transaction

_OLD = "n > ? AND n <= ? AND ((state > 0 AND ended_us < ?) OR (known = 0 AND state = 0 AND call IS NULL AND"
_OLD_TASKS = f"SELECT n FROM task WHERE {_OLD} cancel_us < ? AND running_us < ?))"


def bite(db: sqlite3.Connection, after: int, before_ms: int) -> tuple[int | None, int]:
    """Forget closed tasks among the next BITE rows of `task`: where to go on (None: that was the end), and how many went.
    Open tasks stay, however old."""
    before_us = before_ms * 1000
    row = db.execute("SELECT max(n) FROM (SELECT n FROM task WHERE n > ? ORDER BY n LIMIT ?)", (after, BITE)).fetchone()
    if row[0] is None:
        return None, 0
    upto: int = row[0]
    where = (after, upto, before_us, before_us, before_us)
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(f"DELETE FROM attempt WHERE id IN (SELECT id FROM task WHERE n IN ({_OLD_TASKS}))", where)
        gone = db.execute(f"DELETE FROM task WHERE n IN ({_OLD_TASKS})", where).rowcount
        if gone:
            db.execute(
                "DELETE FROM span WHERE first IN (SELECT first FROM span WHERE first <= ? AND last > ? AND NOT EXISTS"
                " (SELECT 1 FROM task WHERE n BETWEEN span.first AND span.last))",
                (upto, after),
            )
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    # Nothing that old is to be expected behind rows that were all accepted later.
    if (
        not gone
        and not db.execute(
            "SELECT 1 FROM task WHERE n > ? AND n <= ? AND accepted_us < ? LIMIT 1", (after, upto, before_us)
        ).fetchone()
    ):
        return None, 0
    return upto, gone


def bite_others(db: sqlite3.Connection, before_ms: int) -> int:
    """Forget some of the events, dead letters, outputs and calls that are that old; how many went (0: that was all)."""
    before_us = before_ms * 1000
    gone = 0
    db.execute("BEGIN IMMEDIATE")
    try:
        for text, given in (
            ("DELETE FROM event WHERE n IN (SELECT n FROM event ORDER BY n LIMIT ?) AND at_ms < ?", before_ms),
            ("DELETE FROM dead WHERE id IN (SELECT id FROM dead ORDER BY id LIMIT ?) AND at_us < ?", before_us),
            ("DELETE FROM output WHERE id IN (SELECT id FROM output ORDER BY at_ms LIMIT ?) AND at_ms < ?", before_ms),
        ):
            gone += db.execute(text, (BITE, given)).rowcount
        gone += db.execute(
            "DELETE FROM call WHERE id IN (SELECT id FROM call WHERE NOT EXISTS"
            " (SELECT 1 FROM span WHERE span.call = call.id) LIMIT ?)",
            (BITE,),
        ).rowcount
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return gone


def finished_output(db: sqlite3.Connection) -> None:
    """What closed tasks printed while they ran: their ends have it all."""
    db.execute("DELETE FROM output WHERE EXISTS (SELECT 1 FROM task WHERE task.id = output.id AND state > 0)")
