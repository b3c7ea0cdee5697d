"""Queries about tasks.

They take a read-only connection and run in a reader thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from oncue.protocol.records import Call, TaskRecord
from oncue.task_lifecycle import State, TaskState
from oncue.view import rows
from oncue.view.bulk_sql import fetch, fetch_each
from oncue.view.chains.causes import Cause, Key, causes
from oncue.view.chains.traces import TracedTask, following
from oncue.view.interning import CallCache
from oncue.view.rows import ended_of, event_of
from oncue.view.tasks import ClosedTask

#: seq, call, accepted_us, attempt, due_us, task
OpenRow = tuple[int, Call, int, int, int, TaskRecord]

FAILURES = 100  # of a trace, whose reasons are read
NEWEST = 10_000  # tasks whose times are read for newest_us
DAY_US = 86_400 * 1_000_000
_OPEN_COLUMNS = "seq, call, accepted_us, attempt, due_us, id, args, event_source, event_id, retry_of, mark_us"
OPEN = (
    f"SELECT {_OPEN_COLUMNS} FROM task WHERE state = 0 AND known = 1 AND seq > ?"
    " AND endpoint = (SELECT id FROM word WHERE text = ?) ORDER BY seq LIMIT ?"
)
OPEN_NORMAL = OPEN.replace("known = 1", "known = 1 AND priority = 0")
OPEN_OTHERS = (
    f"SELECT {_OPEN_COLUMNS} FROM task INDEXED BY task_priority WHERE state = 0 AND known = 1 AND priority <> 0 AND seq > ?"
    " AND endpoint = (SELECT id FROM word WHERE text = ?) AND priority = ? ORDER BY seq LIMIT ?"
)
OTHERS_OPEN = (
    "SELECT EXISTS (SELECT 1 FROM task INDEXED BY task_priority WHERE state = 0 AND known = 1 AND priority <> 0"
    " AND endpoint = (SELECT id FROM word WHERE text = ?))"
)
EXPIRED = (
    f"SELECT {_OPEN_COLUMNS} FROM task WHERE state = 0 AND expires_us > 0 AND expires_us <= ? AND known = 1"
    " AND running_attempt <> attempt ORDER BY expires_us LIMIT ?"
)
CANCELS = (
    "SELECT task.id, text FROM task JOIN word ON word.id = task.endpoint"
    " WHERE state = 0 AND cancel_us > 0 AND known = 1 ORDER BY cancel_us LIMIT ?"
)
OPEN_COUNTS = (
    "SELECT (SELECT text FROM word WHERE word.id = endpoint), count(*) FROM task WHERE state = 0 AND known = 1"
    " GROUP BY endpoint"
)
OLDEST_OPEN = (
    "SELECT min(seq) FROM task WHERE state = 0 AND known = 1 AND endpoint = (SELECT id FROM word WHERE text = ?)"
)
REACHED = "SELECT next FROM position WHERE topic = ? AND partition = 0"
ACCEPTED = "SELECT id, accepted_us FROM task WHERE id IN ({values}) AND known = 1"
STATES = "SELECT task.id, state, text FROM task JOIN word ON word.id = task.endpoint WHERE task.id IN ({values})"
CALLS = "SELECT id, call FROM task WHERE id IN ({values}) AND call IS NOT NULL"
ARGUMENTS = "SELECT args FROM task WHERE id = ? AND known = 1"
CLOSED = f"SELECT {rows.COLUMNS} FROM task WHERE id IN ({{values}}) AND state > 0"
RETRIES = "SELECT retry_of, id FROM task INDEXED BY task_retried WHERE retry_of IN ({values}) ORDER BY n"
FIRED = "SELECT call, id FROM task WHERE event_source = ? AND event_id = ? AND call IS NOT NULL ORDER BY n"

RUNS = """
SELECT task.event_source, task.event_id,
CASE WHEN state = 0 THEN max(running_us, accepted_us) ELSE started_us END, ended_us
FROM json_each(?) AS wanted JOIN task INDEXED BY task_caused
ON task.event_source = json_extract(wanted.value, '$[0]') AND task.event_id = json_extract(wanted.value, '$[1]')
WHERE call IS NOT NULL"""


class OpenPage(NamedTuple):
    """A page of open tasks of one priority."""

    rows: list[OpenRow]
    reached: int  # the topic's offset up to which this is complete
    others: bool  # the endpoint has open tasks that are not of normal priority


class TaskRun(NamedTuple):
    """Start and end of a task, in unix µs."""

    started_us: int
    ended_us: int  # 0: it runs, or waits


def _closed(db: sqlite3.Connection, ids: Sequence[bytes], most_bytes: int) -> list[Any]:
    """Return rows of closed tasks; about `most_bytes` of them if that is not 0."""
    if not most_bytes:
        return fetch(db, CLOSED, ids)
    found: list[Any] = []
    size = 0
    for row in fetch_each(db, CLOSED, ids):
        found.append(row)
        size += len(row[18] or b"") + len(row[19] or b"")
        if size > most_bytes:
            break
    return found


class TaskQueries:
    """Queries that decode calls, with a cache shared by the reader threads."""

    def __init__(self) -> None:
        self.calls = CallCache()

    def task(self, db: sqlite3.Connection, task_id: bytes) -> TaskState | None:
        found = rows.load(db, [task_id], lambda n: self.calls.get(db, n)).get(task_id)
        return found[1] if found else None

    def tasks(self, db: sqlite3.Connection, ids: Sequence[bytes], brief: bool = False) -> dict[bytes, TaskState]:
        found = rows.load(db, ids, lambda n: self.calls.get(db, n), brief)
        return {task_id: state for task_id, (_, state) in found.items()}

    def with_causes(self, db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, tuple[TaskState, Cause]]:
        states, found = self.tasks(db, ids), causes(db, ids)
        return {task_id: (state, found[task_id]) for task_id, state in states.items()}

    def trace(self, db: sqlite3.Connection, key: Key, task: bytes, most: int) -> list[TracedTask]:
        found = following(db, [key], most, lambda n: self.calls.get(db, n))
        first = self.tasks(db, [task], True) if task else {}
        found = [TracedTask(state, b"") for state in first.values()] + found
        failed = [t.state.id for t in found if t.state.state > State.SUCCEEDED]
        whole = self.tasks(db, failed[:FAILURES])  # with the reasons
        return [TracedTask(whole.get(t.state.id, t.state), t.after) for t in found]

    def states(self, db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, tuple[State, str]]:
        return {task_id: (State(state), endpoint) for task_id, state, endpoint in fetch(db, STATES, ids)}

    def calls_of(self, db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, Call]:
        return {task_id: self.calls.get(db, n) for task_id, n in fetch(db, CALLS, ids)}

    def accepted(self, db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, int]:
        return dict(fetch(db, ACCEPTED, ids))

    def outcomes(self, db: sqlite3.Connection, ids: Sequence[bytes], most_bytes: int = 0) -> list[ClosedTask]:
        found = rows.states(db, _closed(db, ids, most_bytes), lambda n: self.calls.get(db, n))
        closings = []
        for state in found:
            ended = ended_of(state)
            if ended is not None and state.call is not None:
                closings.append(ClosedTask(state.id, state.state, state.call, ended))
        return closings

    def open_tasks(self, db: sqlite3.Connection, endpoint: str, after_seq: int, limit: int) -> list[OpenRow]:
        return self._open(db, OPEN, (after_seq, endpoint, limit))

    def open_page(
        self, db: sqlite3.Connection, endpoint: str, topic: str, after_seq: int, limit: int, priority: int
    ) -> OpenPage:
        row = db.execute(REACHED, (topic,)).fetchone()  # consistent: a query is one transaction
        others = bool(db.execute(OTHERS_OPEN, (endpoint,)).fetchone()[0])
        if priority:
            rows = self._open(db, OPEN_OTHERS, (after_seq, endpoint, priority, limit))
        else:
            rows = self._open(db, OPEN_NORMAL if others else OPEN, (after_seq, endpoint, limit))
        return OpenPage(rows, row[0] if row else 0, others)

    def expired(self, db: sqlite3.Connection, now_us: int, limit: int) -> list[OpenRow]:
        return self._open(db, EXPIRED, (now_us, limit))

    def _open(self, db: sqlite3.Connection, text: str, given: tuple[object, ...]) -> list[OpenRow]:
        return [
            (
                seq,
                self.calls.get(db, call),
                accepted,
                attempt,
                due,
                TaskRecord(task_id, args or b"", event_of(source, event), retry_of or b"", mark),
            )
            for seq, call, accepted, attempt, due, task_id, args, source, event, retry_of, mark in db.execute(
                text, given
            ).fetchall()
        ]

    def fired(self, db: sqlite3.Connection, source: str, event_id: str) -> list[tuple[Call, bytes]]:
        found = db.execute(FIRED, (source, event_id)).fetchall()
        return [(self.calls.get(db, call), task_id) for call, task_id in found]


def runs(db: sqlite3.Connection, events: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[TaskRun]]:
    """Return when the tasks ran that these events (source, id) caused."""
    found: dict[tuple[str, str], list[TaskRun]] = {}
    for source, event_id, *run in db.execute(RUNS, (json.dumps(events),)).fetchall():
        found.setdefault((source, event_id), []).append(TaskRun(*run))
    return found


def arguments(db: sqlite3.Connection, ids: Sequence[bytes], most_bytes: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    size = 0
    for task_id in ids:
        row = db.execute(ARGUMENTS, (task_id,)).fetchone()
        found.append(row and (row[0] or b""))
        size += len(found[-1] or b"")
        if size > most_bytes:
            break
    return found


def open_counts(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute(OPEN_COUNTS).fetchall())


def oldest_open_seq(db: sqlite3.Connection, endpoint: str) -> int | None:
    found: int | None = db.execute(OLDEST_OPEN, (endpoint,)).fetchone()[0]
    return found


def newest_us(db: sqlite3.Connection) -> int:
    """Return the latest time of the newest tasks, or in their ids; 0: none."""
    rows = db.execute("SELECT id, accepted_us FROM task WHERE n > (SELECT max(n) FROM task) - ?", (NEWEST,)).fetchall()
    newest = max((accepted_us for _, accepted_us in rows), default=0)
    # The time in some ids is a hash (oncue/ids.py): mostly far from any clock's.
    made = [int.from_bytes(task_id[:6], "big") * 1_000 for task_id, _ in rows]
    return max([newest, *(us for us in made if us < newest + DAY_US)])


def cancels(db: sqlite3.Connection, limit: int) -> list[tuple[bytes, str]]:
    return db.execute(CANCELS, (limit,)).fetchall()


def retries(db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the newest retry by hand of each of these tasks that has one."""
    return dict(fetch(db, RETRIES, ids))
