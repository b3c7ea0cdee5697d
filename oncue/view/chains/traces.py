"""The tasks that an event caused, and those that their outcomes caused, and so on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from oncue.ids import event_digest
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import Call
from oncue.task_lifecycle import TaskState
from oncue.view import rows
from oncue.view.bulk_sql import fetch_each
from oncue.view.chains.causes import LONGEST, Key

_CAUSED = """SELECT task.id, task.event_source, task.event_id
FROM json_each(?) AS wanted JOIN task INDEXED BY task_caused
ON task.event_source = json_extract(wanted.value, '$[0]') AND task.event_id = json_extract(wanted.value, '$[1]')
WHERE task.call IS NOT NULL ORDER BY task.n LIMIT ?"""
_MEMBERS = "SELECT event, task FROM member WHERE event IN ({values})"


class TracedTask(NamedTuple):
    """A task of a trace; `after`: the task whose outcome caused it, b"" for none."""

    state: TaskState  # without arguments, value and output
    after: bytes


def following(
    db: sqlite3.Connection, keys: Sequence[Key], most: int, call_of: Callable[[int], Call]
) -> list[TracedTask]:
    """Return `most` tasks that these events caused at any distance, nearest first."""
    found: dict[bytes, bytes] = {}  # task -> the one before it
    for _ in range(LONGEST):
        caused = db.execute(_CAUSED, (json.dumps(keys), most - len(found))).fetchall()
        new = {i: _task_of(source, event) for i, source, event in caused if i not in found}
        new |= _of_windows(db, keys, most - len(found) - len(new), {*found, *new})
        found |= new
        if not new or len(found) >= most:
            break
        keys = [(OUTCOME_SOURCE, i.hex()) for i in new]
    states = rows.load(db, list(found), call_of, True)
    return [TracedTask(states[i][1], after) for i, after in found.items() if i in states]


def _of_windows(db: sqlite3.Connection, keys: Sequence[Key], most: int, known: set[bytes]) -> dict[bytes, bytes]:
    """Return the tasks of windows with these events among others; see `following`."""
    digests = {event_digest(*key): key for key in keys}
    found: dict[bytes, bytes] = {}
    for digest, task in fetch_each(db, _MEMBERS, list(digests)):
        if len(found) >= most:
            break
        if task not in known:
            found.setdefault(task, _task_of(*digests[digest]))
    return found


def _task_of(source: str, event_id: str) -> bytes:
    try:
        return bytes.fromhex(event_id) if source == OUTCOME_SOURCE else b""
    except ValueError:
        return b""
