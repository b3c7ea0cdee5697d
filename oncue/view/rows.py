"""Conversion of `task` and `attempt` rows to TaskState."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from oncue.protocol.records import Call, Ended
from oncue.task_lifecycle import Attempt, State, TaskState
from oncue.view.bulk_sql import fetch

COLUMNS = (
    "id, call, known, state, attempt, due_us, accepted_us, started_us, ended_us, mark_us, cancel_us, cancel_by,"
    " running_attempt, running_us, event_source, event_id, retry_of, args, value, output, n"
)
#: Qualified, for joins of tables that have an `id`, too.
TASK_COLUMNS = ", ".join("task." + name.strip() for name in COLUMNS.split(","))
_BY_ID = f"SELECT {COLUMNS} FROM task WHERE id IN ({{values}})"
_BRIEF = _BY_ID.replace("args, value, output", "NULL, NULL, NULL")
_ATTEMPTS = (
    "SELECT id, pos, n, status, started_us, ended_us, value, output, superseded FROM attempt WHERE id IN ({values})"
    " ORDER BY id, pos"
)
_BRIEF_ATTEMPTS = _ATTEMPTS.replace("value, output", "x'', x''")

CallOf = Callable[[int], Call]


def event_of(source: str | None, event_id: str | None) -> tuple[str, str] | None:
    return None if event_id is None else (source or "", event_id)


def load(
    db: sqlite3.Connection, ids: Sequence[bytes], call_of: CallOf, brief: bool = False
) -> dict[bytes, tuple[int, TaskState]]:
    """Return (n, state) of the tasks that have a row, by task id.

    `brief`: without arguments, values and outputs.
    """
    rows = fetch(db, _BRIEF if brief else _BY_ID, ids)
    return {row[0]: (row[20], state) for row, state in zip(rows, states(db, rows, call_of, brief), strict=True)}


def states(db: sqlite3.Connection, rows: Sequence[Any], call_of: CallOf, brief: bool = False) -> list[TaskState]:
    """Return the TaskStates of rows (of COLUMNS) with all attempts."""
    others: dict[bytes, list[tuple[int, Attempt]]] = {}
    if rows:
        text = _BRIEF_ATTEMPTS if brief else _ATTEMPTS
        for task_id, pos, n, status, started, ended, value, output, late in fetch(db, text, [r[0] for r in rows]):
            made = Attempt(n, status, started, ended, value, output, bool(late))
            others.setdefault(task_id, []).append((pos, made))
    return [_state(row, others.get(row[0], []), call_of) for row in rows]


def _state(row: Any, others: list[tuple[int, Attempt]], call_of: CallOf) -> TaskState:
    state = State(row[3])
    attempts = [a for _, a in others]
    if state.closed:  # the closing attempt has the position that the others leave free
        index = next((i for i, (pos, _) in enumerate(others) if pos != i), len(others))
        attempts.insert(index, Attempt(row[4], row[3] - 1, row[7], row[8], row[18] or b"", row[19] or b""))
    return TaskState(
        row[0],
        bool(row[2]),
        None if row[1] is None else call_of(row[1]),
        row[17] or b"",
        row[6],
        event_of(row[14], row[15]),
        row[16] or b"",
        row[9],
        state,
        row[4],
        row[5],
        tuple(attempts),
        (row[12], row[13]),
        row[10],
        row[11] or "",
    )


def ended_of(state: TaskState) -> Ended | None:
    """Return the result that closed the task, as in its record."""
    a = state.closing
    if a is None:
        return None
    return Ended(
        state.id, a.n, a.status, a.started_us, a.ended_us, a.value, a.output, state.event, state.retry_of, state.mark_us
    )
