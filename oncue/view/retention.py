"""Deletes rows older than the log's retention.

Works in steps: each is a short transaction between groups of batches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from oncue.clocks.process import now_us
from oncue.view import use_rows

STEP_ROWS = 5_000  # rows scanned per transaction

_OLD = "n > ? AND n <= ? AND ((state > 0 AND ended_us < ?) OR (known = 0 AND state = 0 AND call IS NULL AND"
_OLD_TASKS = f"SELECT n FROM task WHERE {_OLD} cancel_us < ? AND running_us < ?))"


Periods = Sequence[tuple[int, int]]  # (first, last) unix µs


def delete_old_tasks(db: sqlite3.Connection, after: int, before_ms: int, kept: Periods = ()) -> tuple[int | None, int]:
    """Delete old closed tasks among the next STEP_ROWS rows of `task`.

    Returns the row to continue after (None at the end) and the number of deleted rows. Open tasks
    are kept, however old. So are tasks that ended in a period of `kept`.
    """
    old = _OLD_TASKS + _outside("ended_us", kept)
    before_us = before_ms * 1000
    row = db.execute(
        "SELECT max(n) FROM (SELECT n FROM task WHERE n > ? ORDER BY n LIMIT ?)", (after, STEP_ROWS)
    ).fetchone()
    if row[0] is None:
        return None, 0
    upto: int = row[0]
    where = (after, upto, before_us, before_us, before_us)
    db.execute("BEGIN IMMEDIATE")
    try:
        for table in ("attempt", "task_usage", "task_worker"):
            db.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM task WHERE n IN ({old}))", where)
        db.execute(f"DELETE FROM member WHERE task IN (SELECT id FROM task WHERE n IN ({old}))", where)
        deleted = db.execute(f"DELETE FROM task WHERE n IN ({old})", where).rowcount
        if deleted:
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
    # Rows are roughly in order of acceptance: after a step of newer rows, no old ones follow.
    if (
        not deleted
        and not db.execute(
            "SELECT 1 FROM task WHERE n > ? AND n <= ? AND accepted_us < ? LIMIT 1", (after, upto, before_us)
        ).fetchone()
    ):
        return None, 0
    return upto, deleted


def delete_old_records(db: sqlite3.Connection, before_ms: int, kept: Periods = ()) -> int:
    """Delete one step of old events, dead letters, outputs and unused calls.

    Returns the number of deleted rows; 0 if none are left. `kept`: see delete_old_tasks.
    """
    events = _outside("at_ms", [(first // 1000, last // 1000) for first, last in kept])
    letters = _outside("at_us", kept)
    before_us = before_ms * 1000
    deleted = 0
    db.execute("BEGIN IMMEDIATE")
    try:
        use_rows.forget(db, now_us())
        for text, given in (
            ("DELETE FROM event WHERE n IN (SELECT n FROM event ORDER BY n LIMIT ?) AND at_ms < ?" + events, before_ms),
            (
                "DELETE FROM dead WHERE id IN (SELECT id FROM dead ORDER BY id LIMIT ?) AND at_us < ?" + letters,
                before_us,
            ),
            ("DELETE FROM output WHERE id IN (SELECT id FROM output ORDER BY at_ms LIMIT ?) AND at_ms < ?", before_ms),
        ):
            deleted += db.execute(text, (STEP_ROWS, given)).rowcount
        deleted += db.execute(
            "DELETE FROM call WHERE id IN (SELECT id FROM call WHERE NOT EXISTS"
            " (SELECT 1 FROM span WHERE span.call = call.id) LIMIT ?)",
            (STEP_ROWS,),
        ).rowcount
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return deleted


def delete_finished_output(db: sqlite3.Connection) -> None:
    """Delete the running output of closed tasks: their results contain all of it."""
    db.execute("DELETE FROM output WHERE EXISTS (SELECT 1 FROM task WHERE task.id = output.id AND state > 0)")


def _outside(column: str, periods: Periods) -> str:
    """Return the conditions for a column's value to be in none of the periods."""
    return "".join(f" AND NOT {column} BETWEEN {first:d} AND {last:d}" for first, last in periods)
