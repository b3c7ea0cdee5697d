"""Finds the event with which a chain of tasks began.

    event ──rule──► task ──outcome──rule──► task ...

A task of a rule on outcomes names the task before it as its event: OUTCOME_SOURCE and the id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import Event
from oncue.view.bulk_sql import fetch
from oncue.view.event_lists import COLUMNS, event_row

LONGEST = 64  # chain that is followed back

Key = tuple[str, str]  # source and id of an event
_EVENTS = "SELECT id, event_source, event_id FROM task WHERE id IN ({values}) AND event_id IS NOT NULL"
_STORED = f"SELECT {COLUMNS} FROM event INDEXED BY event_key WHERE id = ? AND source = ? ORDER BY n LIMIT 1"


class Cause(NamedTuple):
    """First cause of the chain that a task belongs to."""

    key: Key | None = None  # source and id of the event; None: a person or program called the function
    event: Event | None = None  # None: there is none, or it is not kept any more
    depth: int = 0  # tasks before this one
    size_bytes: int = 0  # of the event as it is stored
    first: bytes = b""  # id of the chain's first task


def causes(db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, Cause]:
    """Return the causes of these tasks."""
    ends = _follow(db, ids)
    stored = events(db, {key for key, _, _ in ends.values() if key is not None})
    found: dict[bytes, Cause] = {}
    for task, (key, depth, first) in ends.items():
        event, size = stored.get(key, (None, 0)) if key is not None else (None, 0)
        found[task] = Cause(key, event, depth, size, first)
    return found


def _follow(db: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, tuple[Key | None, int, bytes]]:
    """Return the first event of each chain, the tasks between, and the first task."""
    ends: dict[bytes, tuple[Key | None, int, bytes]] = {}
    at = {i: i for i in ids}  # where each chain is followed
    for depth in range(LONGEST):
        found = {task: (source or "", event) for task, source, event in fetch(db, _EVENTS, list(set(at.values())))}
        following: dict[bytes, bytes] = {}
        for start, task in at.items():
            key = found.get(task)
            before = _task_of(key)
            ends[start] = (key if before is None else None, depth, task)
            if before is not None:
                following[start] = before
        if not following:
            break
        at = following
    return ends


def _task_of(key: Key | None) -> bytes | None:
    """Return the id of the task whose outcome an event is; None: it is another event."""
    if key is None or key[0] != OUTCOME_SOURCE:
        return None
    try:
        return bytes.fromhex(key[1])
    except ValueError:  # of a sender that chose this source
        return None


def events(db: sqlite3.Connection, keys: Iterable[Key]) -> Mapping[Key, tuple[Event, int]]:
    """Return the stored events and their sizes; of several with one key, the first."""
    rows = ((key, db.execute(_STORED, (key[1], key[0])).fetchone()) for key in keys)
    return {key: (event_row(*row).event, len(row[5])) for key, row in rows if row is not None}
