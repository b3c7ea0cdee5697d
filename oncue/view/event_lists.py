"""Pages of event lists, latest events first.

Type, source and times are found by indexes. For an id, and for what became of the tasks that an
event caused, events are read one after the other: a page reads SCANNED rows at most, and may have
fewer items than it could, or none, and a cursor.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import msgspec

from oncue.errors import Invalid
from oncue.protocol import cloudevents
from oncue.protocol.codec import decode
from oncue.protocol.records import Event
from oncue.view.lists import MAX_ROWS, parse_row, state_tests, take

SCANNED = 20_000
TOP = (1 << 63) - 1
COLUMNS = "place, at_ms, type, source, id, value, headers"
_Headers = tuple[tuple[str, bytes], ...]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of an event list, combined by AND."""

    type: str = ""
    source: str = ""
    id: str = ""  # of the event: the whole, or its beginning
    since_us: int = 0  # stored at or after
    until_us: int = 0  # stored before; 0: no limit
    # of a task that the event caused:
    rule: str = ""
    endpoint: str = ""  # its id
    state: str = ""  # as in TaskFilter
    owner: str = ""
    cursor: str = ""
    limit: int = 50

    @property
    def about_tasks(self) -> bool:
        return bool(self.rule or self.endpoint or self.state)


class EventRow(msgspec.Struct, frozen=True):
    """An event and its position in the log."""

    offset: int
    event: Event
    at_us: int


def cursor_row(cursor: str, begin: int = TOP) -> int:
    """Return the row at which a page begins; `begin` without a cursor. Raises Invalid."""
    return parse_row(cursor, cursor) if cursor else begin


def page(db: sqlite3.Connection, f: EventFilter) -> tuple[list[EventRow], str | None]:
    """Return a page of events, latest first, and the next cursor. Raises Invalid."""
    limit = max(1, min(f.limit, MAX_ROWS))
    scan = _scan(db, f)
    if scan is None:
        return [], None
    text = f"SELECT n, {COLUMNS} {scan.text} ORDER BY n DESC LIMIT ?"
    found, more = take(db.execute(text, (*scan.given, limit + 1)), limit)
    following = found[-1][0] if more else scan.floor if scan.is_cut else None
    return [event_row(*row[1:]) for row in found], None if following is None else str(following)


def count(db: sqlite3.Connection, f: EventFilter, most: int) -> tuple[int, bool]:
    """Count the events of a list, up to `most`; False if there are more.

    For an id, and for tasks, only the latest SCANNED events count.
    """
    scan = _scan(db, f)
    if scan is None:
        return 0, True
    text = f"SELECT count(*) FROM (SELECT 1 {scan.text} LIMIT ?)"
    found: int = db.execute(text, (*scan.given, most + 1)).fetchone()[0]
    return min(found, most), found <= most and not scan.is_cut


class _Scan(NamedTuple):
    """The events that a list reads."""

    text: str  # FROM ... WHERE ...
    given: tuple[object, ...]
    floor: int  # the first row number
    is_cut: bool  # there are events before it, which are not read


def _scan(db: sqlite3.Connection, f: EventFilter) -> _Scan | None:
    """Return which events to read; None if no event can match. Raises Invalid."""
    tests = _tests(db, f)
    first, last = _bounds(db, f, cursor_row(f.cursor))
    if tests is None or first > last:
        return None
    where, given = tests
    floor = max(first, last - SCANNED + 1) if f.id or f.about_tasks else first
    index = "INDEXED BY event_source" if f.source else "INDEXED BY event_type" if f.type else ""
    text = f"FROM event {index} WHERE n BETWEEN ? AND ?{where}"
    return _Scan(text, (floor, last, *given), floor, floor > first)


def _bounds(db: sqlite3.Connection, f: EventFilter, below: int) -> tuple[int, int]:
    """Return the first and the last row number that the page may have."""
    if f.since_us or f.until_us:
        until_ms = -(-f.until_us // 1000) if f.until_us else TOP
        text = "SELECT min(n), max(n) FROM event INDEXED BY event_at WHERE at_ms >= ? AND at_ms < ?"
        low, high = db.execute(text, (f.since_us // 1000, until_ms)).fetchone()
    else:
        low, high = db.execute("SELECT (SELECT min(n) FROM event), (SELECT max(n) FROM event)").fetchone()
    return (0, -1) if low is None else (low, min(high, below - 1))


def _tests(db: sqlite3.Connection, f: EventFilter) -> tuple[str, list[object]] | None:
    """Return conditions and their parameters; None if no event can match."""
    tests: list[tuple[str, tuple[object, ...]]] = []
    if f.source:
        tests.append(("source = ?", (f.source,)))
    if f.type:
        tests.append(("type = ?", (f.type,)))
    if f.id:
        tests.append(("substr(id, 1, ?) = ?", (len(f.id), f.id)))
    if f.since_us:
        tests.append(("at_ms >= ?", (f.since_us // 1000,)))
    if f.until_us:
        tests.append(("at_ms < ?", (-(-f.until_us // 1000),)))
    if f.about_tasks:
        of_tasks = _of_tasks(db, f)
        if of_tasks is None:
            return None
        tests.append(of_tasks)
    return "".join(f" AND {text}" for text, _ in tests), [value for _, given in tests for value in given]


def _of_tasks(db: sqlite3.Connection, f: EventFilter) -> tuple[str, tuple[object, ...]] | None:
    """Return the condition that the event caused such a task; None if there is none."""
    states = state_tests(f.state)  # raises Invalid, whatever else there is
    names, words = [], []
    for column, word in (("rule", f.rule), ("endpoint", f.endpoint), ("owner", f.owner)):
        if word:
            row = db.execute("SELECT id FROM word WHERE text = ?", (word,)).fetchone()
            if row is None:
                return None
            names.append(f"s.{column} = ?")
            words.append(row[0])
    test = f" AND (SELECT {' AND '.join(names)} FROM span s WHERE s.first <= task.n ORDER BY s.first DESC LIMIT 1)"
    return (
        "EXISTS (SELECT 1 FROM task INDEXED BY task_caused WHERE task.event_source = event.source"
        f" AND task.event_id = event.id AND task.call IS NOT NULL{states}{test if names else ''})"
    ), tuple(words)


def event(db: sqlite3.Connection, offset: int) -> EventRow | None:
    """Find an event by its position (`pack_position`) in oncue.events."""
    row = db.execute(f"SELECT {COLUMNS} FROM event WHERE place = ?", (offset,)).fetchone()
    return None if row is None else event_row(*row)


def event_row(place: int, at_ms: int, type: str, source: str, id: str, value: bytes, headers: bytes | None) -> EventRow:
    try:
        event = cloudevents.from_record(value, decode(_Headers, headers) if headers else ())
    except Invalid as e:  # an older version took it; the others of a list are shown
        event = Event(id=id, source=source, type=type, data=f"not shown: {e.message}")
    return EventRow(place, event, at_ms * 1000)


def types(db: sqlite3.Connection, most: int) -> list[str]:
    """Return the types of stored events, in order. One look at the index for each."""
    text = (
        "WITH RECURSIVE found(type) AS (SELECT min(type) FROM event UNION ALL"
        " SELECT (SELECT min(type) FROM event WHERE type > found.type) FROM found WHERE type IS NOT NULL)"
        " SELECT type FROM found WHERE type IS NOT NULL LIMIT ?"
    )
    return [name for (name,) in db.execute(text, (most,))]
