"""Finds what became of events: their tasks, those that followed, and dead letters.

A task is found by the event that it names, or by the window whose event it was (`member`); one that
a person retried, by the task that it replaces. Events are read in the order of their arrival.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from oncue.ids import event_digest
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import Call
from oncue.task_lifecycle import State
from oncue.view.bulk_sql import fetch
from oncue.view.chains.causes import LONGEST
from oncue.view.chains.letter_rows import place_digest
from oncue.view.event_lists import COLUMNS, EventRow, event_row
from oncue.view.lists import take
from oncue.view.lookups import DeadRow, dead_letter

PART = 50  # events whose tasks are read together
NEAR = 4_000  # rows behind a page's cursor that are read before the whole time is looked through
PAGE_TASKS = 5_000  # after which a page ends
MOST_TASKS = 50_000  # of one part of a page; of more, the event is not accounted for
MOST_LETTERS = 20  # of one event, newest first
_TASK = "id, call, state, accepted_us, started_us, ended_us, running_us, event_source, event_id, retry_of"
_CAUSED = f"""SELECT {", ".join("task." + name for name in _TASK.split(", "))}
FROM json_each(?) AS wanted JOIN task INDEXED BY task_caused
ON task.event_source = json_extract(wanted.value, '$[0]') AND task.event_id = json_extract(wanted.value, '$[1]')
WHERE task.call IS NOT NULL LIMIT ?"""
_BY_ID = f"SELECT {_TASK} FROM task WHERE id IN ({{values}}) AND call IS NOT NULL"
_RETRIES = f"SELECT {_TASK} FROM task INDEXED BY task_retried WHERE retry_of IN ({{values}}) AND call IS NOT NULL"
_MEMBERS = "SELECT event, task FROM member WHERE event IN ({values})"
_LETTERS = "SELECT event, letter FROM letter_event WHERE event IN ({values}) ORDER BY letter DESC"
_EVENTS = f"SELECT n, {COLUMNS} FROM event WHERE n > ? AND n <= ? AND at_ms >= ? AND at_ms < ? ORDER BY n LIMIT ?"
_BOUNDS = "SELECT min(n), max(n) FROM event INDEXED BY event_at WHERE at_ms >= ? AND at_ms < ?"
_FOREVER = 1 << 62
CallOf = Callable[[sqlite3.Connection, int], Call]


class AccountedTask(NamedTuple):
    """A task that followed from an event."""

    id: bytes
    call: Call
    state: State
    accepted_us: int
    started_us: int
    ended_us: int
    after: bytes  # task whose outcome caused it; b"": the event did
    retry_of: bytes


class EventAccount(NamedTuple):
    """An event with all that is known to have followed."""

    n: int  # row of the view: a cursor
    row: EventRow
    tasks: list[AccountedTask]
    letters: list[DeadRow]
    whole: bool  # False: it has more tasks than are read


def page(
    db: sqlite3.Connection, since_us: int, until_us: int, after: int, limit: int, call_of: CallOf
) -> tuple[list[EventAccount], int | None]:
    """Return accounts of events that were stored in this time, and the next cursor.

    The events of a page have a few MB.
    """
    since_ms, until_ms = since_us // 1000, until_us // 1000 if until_us else _FOREVER
    near = (after, after + NEAR, since_ms, until_ms, limit + 1)
    taken, more = take(db.execute(_EVENTS, near), limit)
    if not more:  # there may be others farther away
        low, high = db.execute(_BOUNDS, (since_ms, until_ms)).fetchone()
        if low is None:
            return [], None
        given = (max(after, low - 1), high, since_ms, until_ms, limit + 1)
        taken, more = take(db.execute(_EVENTS, given), limit)
    rows = [(n, event_row(*rest)) for n, *rest in taken]
    found: list[EventAccount] = []
    tasks = 0
    for at in range(0, len(rows), PART):
        part = _part(db, rows[at : at + PART], call_of)
        found += part
        tasks += sum(len(account.tasks) for account in part)
        if tasks > PAGE_TASKS:
            break
    return found, found[-1].n if more or len(found) < len(rows) else None


def _part(db: sqlite3.Connection, rows: Sequence[tuple[int, EventRow]], call_of: CallOf) -> list[EventAccount]:
    keys = {(row.event.source, row.event.id): set[int]() for _, row in rows}
    for n, row in rows:
        keys[row.event.source, row.event.id].add(n)
    tasks = _Tasks(db, call_of)
    tasks.read({event_digest(*key): key for key in keys})
    letters = _letters(db, rows, tasks)
    return [
        EventAccount(n, row, tasks.of((row.event.source, row.event.id)), letters.get(n, []), not tasks.cut)
        for n, row in rows
    ]


class _Tasks:
    """The tasks of some events, by their first event."""

    def __init__(self, db: sqlite3.Connection, call_of: CallOf) -> None:
        self._db, self._call_of = db, call_of
        self.found: dict[bytes, AccountedTask] = {}
        self._events: dict[bytes, set[tuple[str, str]]] = {}  # task -> events with which its chain began
        self._of: dict[tuple[str, str], list[bytes]] = {}
        self.cut = False

    def of(self, key: tuple[str, str]) -> list[AccountedTask]:
        return [self.found[i] for i in self._of.get(key, ())]

    def read(self, digests: dict[bytes, tuple[str, str]]) -> None:
        """Read the tasks of these events, and all that followed them."""
        fresh = self._caused(list(digests.values()), b"", {key: {key} for key in digests.values()})
        members = [(task, digests[event]) for event, task in fetch(self._db, _MEMBERS, list(digests))]
        by_task: dict[bytes, set[tuple[str, str]]] = {}
        for task, key in members:
            by_task.setdefault(task, set()).add(key)
        for row in fetch(self._db, _BY_ID, list(by_task)):
            fresh |= self._add(row, b"", by_task[row[0]])
        for _ in range(LONGEST):
            if not fresh or self.cut:
                return
            wanted = {(OUTCOME_SOURCE, i.hex()): self._events[i] for i in fresh}
            retried = fetch(self._db, _RETRIES, list(fresh))
            fresh = self._caused(list(wanted), None, wanted)
            for row in retried:
                old = bytes(row[9])
                fresh |= self._add(row, self.found[old].after, self._events[old])

    def _caused(
        self, keys: Sequence[tuple[str, str]], after: bytes | None, events: dict[tuple[str, str], set[tuple[str, str]]]
    ) -> set[bytes]:
        """Read the tasks that these events caused. `after` None: they are outcomes."""
        left = MOST_TASKS - len(self.found)
        rows = self._db.execute(_CAUSED, (json.dumps(keys), left + 1)).fetchall()
        self.cut = self.cut or len(rows) > left
        fresh: set[bytes] = set()
        for row in rows:
            fresh |= self._add(row, bytes.fromhex(row[8]) if after is None else after, events[row[7], row[8]])
        return fresh

    def _add(self, row: Any, after: bytes, events: Iterable[tuple[str, str]]) -> set[bytes]:
        """Note a task of these events; return its id if that is new."""
        task_id, call, state, accepted_us, started_us, ended_us, running_us, _, _, retry_of = row
        known = self._events.setdefault(task_id, set())
        new = set(events) - known
        if not new:
            return set()
        known |= new
        for key in new:
            self._of.setdefault(key, []).append(task_id)
        self.found[task_id] = AccountedTask(
            task_id,
            self._call_of(self._db, call),
            State(state),
            accepted_us,
            started_us or running_us,
            ended_us,
            after,
            retry_of or b"",
        )
        return {task_id}


def _letters(db: sqlite3.Connection, rows: Sequence[tuple[int, EventRow]], tasks: _Tasks) -> dict[int, list[DeadRow]]:
    """Return the dead letters of each event, by its row."""
    wanted: dict[bytes, list[int]] = {}
    for n, row in rows:
        key = row.event.source, row.event.id
        outcomes = [event_digest(OUTCOME_SOURCE, task.id.hex()) for task in tasks.of(key)]
        for digest in (event_digest(*key), place_digest(row.offset), *outcomes):
            wanted.setdefault(digest, []).append(n)
    numbers: dict[int, dict[int, None]] = {}
    for event, number in fetch(db, _LETTERS, list(wanted)):
        for n in wanted[event]:
            if len(numbers.setdefault(n, {})) < MOST_LETTERS:
                numbers[n][number] = None
    read = {number: dead_letter(db, number) for found in numbers.values() for number in found}
    return {n: [letter for number in found if (letter := read[number]) is not None] for n, found in numbers.items()}
