"""Pages of task lists, latest tasks first.

A page starts below the cursor's row number. Later rows are above it, so pages have neither gaps nor
duplicates. Row numbers are local to a view: a cursor contains the view's tag, and other views
reject it.

Each filter uses an index, so that a page reads few rows that it does not return: event, rare states
and open tasks use partial indexes of `task`; rule, function, endpoint, owner and times use `span`.
Further filters are tested on these rows. Several states are one statement each, merged by row
number: an index of one state gives its rows in order.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.task_lifecycle import State, TaskState
from oncue.view import rows
from oncue.view.interning import CallCache
from oncue.view.spans import SPAN_US

MAX_ROWS = 1_000  # per page
PAGE_BYTES = 2 << 20  # of arguments, values, outputs and records in it
SORTED = 50_000  # up to so many open tasks, sorting them is faster than a scan

_OPEN = {
    "open": "",
    "waiting": "task.attempt = 1 AND task.running_attempt <> task.attempt AND task.cancel_us = 0",
    "retrying": "task.attempt > 1 AND task.running_attempt <> task.attempt AND task.cancel_us = 0",
    "running": "task.running_attempt = task.attempt AND task.cancel_us = 0",
    "cancelling": "task.cancel_us > 0",
}
_CLOSED = {state.name.lower(): state for state in State if state.closed}
WORDS = (*_OPEN, "closed", *_CLOSED)
_BY_SPAN = ("rule", "function", "name", "endpoint", "owner")  # most selective first


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of a task list, combined by AND."""

    state: str = ""  # phases (task_lifecycle.phase), "open" or "closed", with commas
    endpoint: str = ""  # its id
    function: str = ""  # content hash or name
    rule: str = ""
    event: tuple[str, str] | None = None
    owner: str = ""
    since_us: int = 0  # accepted at or after
    until_us: int = 0  # accepted before; 0: no limit
    not_retried: bool = False  # only tasks that no retry by hand has replaced
    cursor: str = ""
    limit: int = 50


class SelectBuilder(msgspec.Struct):
    """Builder of a SELECT statement."""

    source: str = "task"
    where: list[str] = msgspec.field(default_factory=list)
    given: list[object] = msgspec.field(default_factory=list)
    order: str = "task.n DESC"

    def add(self, condition: str, *given: object) -> None:
        if condition:
            self.where.append(condition)
            self.given += given

    def text(self) -> str:
        return f"SELECT {rows.TASK_COLUMNS} FROM {self.source} WHERE {' AND '.join(self.where)} ORDER BY {self.order} LIMIT ?"

    def count_text(self) -> str:
        return f"SELECT count(*) FROM (SELECT 1 FROM {self.source} WHERE {' AND '.join(self.where)} LIMIT ?)"


def page(db: sqlite3.Connection, f: TaskFilter, calls: CallCache) -> tuple[list[TaskState], str | None]:
    """Return a page and the next page's cursor, None at the end. Raises Invalid."""
    tag = _tag(db)
    limit = max(1, min(f.limit, MAX_ROWS))
    queries = _plans(db, f, tag)
    each = [db.execute(query.text(), (*query.given, limit + 1)) for query in queries]
    found, more = take(each[0] if len(each) == 1 else heapq.merge(*each, key=lambda row: -row[20]), limit)
    cursor = f"{found[-1][20]}-{tag}" if more else None
    return rows.states(db, found, lambda n: calls.get(db, n)), cursor


def count(db: sqlite3.Connection, f: TaskFilter, most: int) -> int:
    """Count the tasks of a list, up to `most`. Raises Invalid."""
    found = 0
    for query in _plans(db, f, _tag(db)):
        found += db.execute(query.count_text(), (*query.given, most - found)).fetchone()[0]
    return found


def _tag(db: sqlite3.Connection) -> str:
    return str(db.execute("SELECT value FROM meta WHERE name = 'tag'").fetchone()[0])


def _plans(db: sqlite3.Connection, f: TaskFilter, tag: str) -> list[SelectBuilder]:
    """Return one statement for each state that the filter names."""
    made = (plan(db, msgspec.structs.replace(f, state=word), tag) for word in state_words(f.state))
    return [query for query in made if query is not None]


def state_words(text: str) -> list[str]:
    """Return the states of a filter, none of which contains another. Raises Invalid."""
    words = dict.fromkeys(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if word not in WORDS:
            raise Invalid(f"state: there is no state {word!r}", remedy=f"one of: {', '.join(WORDS)}")
    if "open" in words and "closed" in words:
        return [""]
    kept = [w for w in words if w in ("open", "closed") or ("open" if w in _OPEN else "closed") not in words]
    return kept or [""]


def take(found: Iterable[Any], limit: int) -> tuple[list[Any], bool]:
    """Return the first rows, up to `limit` and PAGE_BYTES but one at least.

    True if there are more.
    """
    taken: list[Any] = []
    size = 0
    for row in found:
        if len(taken) == limit or size > PAGE_BYTES:
            return taken, True
        taken.append(row)
        size += sum(len(column) for column in row if isinstance(column, bytes))
    return taken, False


def plan(db: sqlite3.Connection, f: TaskFilter, tag: str) -> SelectBuilder | None:
    """Build the statement of a page; None if no task can match."""
    query = SelectBuilder()
    below = _below(f.cursor, tag)
    words = _span_words(db, f)
    if words is None:
        return None
    if f.event is not None:
        query.add("task.event_source = ? AND task.event_id = ?", *f.event)
    if f.event is None and words and f.state not in _rare():
        _by_span(query, words, below)
    elif f.event is None and f.state in _OPEN and _open_count(db) <= SORTED:
        query.source = "task INDEXED BY task_open"
        query.add("task.known = 1")
        _match_span(query, words)
    else:
        _match_span(query, words)
    _by_state(query, f.state)
    if below is not None:
        query.add("task.n < ?", below)
    if (f.since_us or f.until_us) and not _between(db, query, f.since_us, f.until_us):
        return None
    if f.not_retried:
        query.add("NOT EXISTS (SELECT 1 FROM task r INDEXED BY task_retried WHERE r.retry_of = task.id)")
    query.add("task.call IS NOT NULL")
    return query


def _rare() -> frozenset[str]:
    return frozenset(word for word, state in _CLOSED.items() if state is not State.SUCCEEDED)


def parse_row(text: str, cursor: str) -> int:
    """Return the row in the text of a cursor. Raises Invalid."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Invalid(f"cursor: {cursor!r} is not one", remedy="give back the `next` of the page before, as it was")
    return int(text)


def _below(cursor: str, tag: str) -> int | None:
    if not cursor:
        return None
    n, _, of = cursor.partition("-")
    row = parse_row(n, cursor)
    if of != tag:
        raise Invalid("cursor: the view was rebuilt since", remedy="start the list again, without a cursor")
    return row


def _span_words(db: sqlite3.Connection, f: TaskFilter) -> dict[str, int] | None:
    """Return word ids of the filters on calls; None if a word is unknown."""
    wanted = {"endpoint": f.endpoint, "rule": f.rule, "owner": f.owner}
    if f.function:
        is_hash = len(f.function) == 64 and all(c in "0123456789abcdef" for c in f.function)
        wanted["function" if is_hash else "name"] = f.function
    found = {}
    for column, text in wanted.items():
        if text:
            row = db.execute("SELECT id FROM word WHERE text = ?", (text,)).fetchone()
            if row is None:
                return None
            found[column] = row[0]
    return found


def _by_span(query: SelectBuilder, words: dict[str, int], below: int | None) -> None:
    first = next(column for column in _BY_SPAN if column in words)
    query.source = (
        f"span INDEXED BY span_{first} CROSS JOIN task"
        " ON task.n BETWEEN span.first AND span.last AND task.call = span.call"
    )
    query.order = "span.first DESC, task.n DESC"
    for column, number in words.items():
        query.add(f"span.{column} = ?", number)
    if below is not None:
        query.add("span.first < ?", below)


def _match_span(query: SelectBuilder, words: dict[str, int]) -> None:
    """Filter rows found by another index, by the span that contains each."""
    if words:
        tests = " AND ".join(f"s.{column} = ?" for column in words)
        query.add(
            f"(SELECT {tests} FROM span s WHERE s.first <= task.n ORDER BY s.first DESC LIMIT 1)", *words.values()
        )


def _by_state(query: SelectBuilder, word: str) -> None:
    for condition in _state_tests(word):
        query.add(condition)


def _state_tests(word: str) -> tuple[str, ...]:
    if not word:
        return ()
    if word in _OPEN:
        return ("task.state = 0", _OPEN[word])
    if word == "closed":
        return ("task.state > 0",)
    state = _CLOSED[word]
    return (f"task.state = {state.value}", "task.state > 1" if state is not State.SUCCEEDED else "")


def state_tests(text: str) -> str:
    """Return the condition " AND ..." of one of these states. Raises Invalid."""
    each = [" AND ".join(filter(None, _state_tests(word))) for word in state_words(text)]
    return f" AND ({' OR '.join(f'({test})' for test in each)})" if all(each) else ""


def _open_count(db: sqlite3.Connection) -> int:
    """Count open tasks, up to SORTED + 1."""
    text = "SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_open WHERE state = 0 AND known = 1 LIMIT ?)"
    found: int = db.execute(text, (SORTED + 1,)).fetchone()[0]
    return found


def _between(db: sqlite3.Connection, query: SelectBuilder, since_us: int, until_us: int) -> bool:
    """Filter by the time of acceptance, with bounds on the row number.

    False: no task was accepted then.
    """
    if since_us:
        query.add("task.accepted_us >= ?", since_us)
        # Rows below the first span since then cannot match.
        lowest = db.execute("SELECT min(first) FROM span WHERE accepted_us >= ?", (since_us,)).fetchone()[0]
        if lowest is None:
            return False
        _rows(query, ">=", lowest)
    if until_us:
        query.add("task.accepted_us < ?", until_us)
        _rows(query, "<=", _last_before(db, until_us))
    return True


def _rows(query: SelectBuilder, sign: str, n: int) -> None:
    query.add(f"task.n {sign} ?", n)
    if query.source.startswith("span"):
        query.add(f"span.first {sign} ?", n)


def _last_before(db: sqlite3.Connection, until_us: int) -> int:
    """Return a row above which no task was accepted before this time.

    The tasks of a span were accepted within SPAN_US, except in spans of older versions.
    """
    bounded = db.execute("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'bounded_spans'").fetchone()
    old = db.execute("SELECT max(first) FROM span WHERE first < ?", (bounded[0],)).fetchone()[0]
    new = db.execute("SELECT max(first) FROM span WHERE accepted_us < ?", (until_us + SPAN_US,)).fetchone()[0]
    row = db.execute("SELECT last FROM span WHERE first = ?", (max(old or 0, new or 0),)).fetchone()
    return int(row[0]) if row else 0
