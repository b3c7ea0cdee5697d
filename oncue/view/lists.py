"""Lists of tasks, newest first, in pages.

A page starts below the cursor's row number: rows that arrive meanwhile are above it, so pages have neither gaps nor doubles.
The row numbers are this view's own: a cursor carries the view's tag, and another view refuses it.

Each filter has its way that does not read what it does not show: by event, rare states and open tasks through partial
indexes of `task`; by rule, function, endpoint or owner through `span`; what is left is tested on these rows.
"""

from __future__ import annotations

import sqlite3

import msgspec

from oncue.errors import Invalid
from oncue.lifecycle import State, TaskState
from oncue.view import rows
from oncue.view.interning import KnownCalls

MOST = 1_000  # rows a page
SORTED = 50_000  # open tasks up to which sorting them is quicker than looking for them

_OPEN = {
    "open": "",
    "waiting": "task.attempt = 1 AND task.running_attempt <> task.attempt AND task.cancel_us = 0",
    "retrying": "task.attempt > 1 AND task.running_attempt <> task.attempt AND task.cancel_us = 0",
    "running": "task.running_attempt = task.attempt AND task.cancel_us = 0",
    "cancelling": "task.cancel_us > 0",
}
_CLOSED = {state.name.lower(): state for state in State if state.closed}
WORDS = (*_OPEN, "closed", *_CLOSED)
_BY_SPAN = ("rule", "function", "name", "endpoint", "owner")  # the most telling first


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """As dispatcher.backend.TaskQuery. `function` is a content hash or a friendly name."""

    state: str = ""  # a phase (lifecycle.phase), or "open" or "closed"
    endpoint: str = ""  # its id
    function: str = ""
    rule: str = ""
    event: tuple[str, str] | None = None
    owner: str = ""
    since_us: int = 0
    cursor: str = ""
    limit: int = 50


class Plan(msgspec.Struct):
    """A statement that is being put together."""

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


def page(db: sqlite3.Connection, f: TaskFilter, calls: KnownCalls) -> tuple[list[TaskState], str | None]:
    """TaskStates and the cursor of the next page (None at the end). Raises Invalid."""
    tag = db.execute("SELECT value FROM meta WHERE name = 'tag'").fetchone()[0]
    made = plan(db, f, tag)
    if made is None:
        return [], None
    limit = max(1, min(f.limit, MOST))
    found = db.execute(made.text(), (*made.given, limit + 1)).fetchall()
    more = len(found) > limit
    del found[limit:]
    cursor = f"{found[-1][20]}-{tag}" if more else None
    return rows.states(db, found, lambda n: calls.get(db, n)), cursor


def plan(db: sqlite3.Connection, f: TaskFilter, tag: str) -> Plan | None:
    """None: nothing can be found."""
    made = Plan()
    below = _below(f.cursor, tag)
    words = _span_words(db, f)
    if words is None:
        return None
    if f.event is not None:
        made.add("task.event_source = ? AND task.event_id = ?", *f.event)
    if f.event is None and words and f.state not in _rare():
        _by_span(made, words, below)
    elif f.event is None and f.state in _OPEN and _open_count(db) <= SORTED:
        made.source = "task INDEXED BY task_open"
        made.add("task.known = 1")
        _match_span(made, words)
    else:
        _match_span(made, words)
    _by_state(made, f.state)
    if below is not None:
        made.add("task.n < ?", below)
    if f.since_us:
        _since(db, made, f.since_us)
    made.add("task.call IS NOT NULL")
    return made


def _rare() -> frozenset[str]:
    return frozenset(word for word, state in _CLOSED.items() if state is not State.SUCCEEDED)


def _below(cursor: str, tag: str) -> int | None:
    if not cursor:
        return None
    n, _, of = cursor.partition("-")
    if not (n.isascii() and n.isdigit() and len(n) < 19):
        raise Invalid(f"cursor: {cursor!r} is not one", remedy="give back the `next` of the page before, as it was")
    if of != tag:
        raise Invalid("cursor: the list was made anew since", remedy="start the list again, without a cursor")
    return int(n)


def _span_words(db: sqlite3.Connection, f: TaskFilter) -> dict[str, int] | None:
    """The filters by what a call says, as numbers; None when one of them is not the word of any call."""
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


def _by_span(made: Plan, words: dict[str, int], below: int | None) -> None:
    first = next(column for column in _BY_SPAN if column in words)
    made.source = (
        f"span INDEXED BY span_{first} CROSS JOIN task"
        " ON task.n BETWEEN span.first AND span.last AND task.call = span.call"
    )
    made.order = "span.first DESC, task.n DESC"
    for column, number in words.items():
        made.add(f"span.{column} = ?", number)
    if below is not None:
        made.add("span.first < ?", below)


def _match_span(made: Plan, words: dict[str, int]) -> None:
    """Test the rows that are found otherwise: by the one span that has them."""
    if words:
        tests = " AND ".join(f"s.{column} = ?" for column in words)
        made.add(f"(SELECT {tests} FROM span s WHERE s.first <= task.n ORDER BY s.first DESC LIMIT 1)", *words.values())


def _by_state(made: Plan, word: str) -> None:
    if not word:
        return
    if word in _OPEN:
        made.add("task.state = 0")
        made.add(_OPEN[word])
    elif word == "closed":
        made.add("task.state > 0")
    elif word in _CLOSED:
        state = _CLOSED[word]
        made.add(f"task.state = {state.value}" + (" AND task.state > 1" if state is not State.SUCCEEDED else ""))
    else:
        raise Invalid(f"state: there is no state {word!r}", remedy=f"one of: {', '.join(WORDS)}")


def _open_count(db: sqlite3.Connection) -> int:
    """Up to one more than SORTED."""
    text = "SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_open WHERE state = 0 AND known = 1 LIMIT ?)"
    found: int = db.execute(text, (SORTED + 1,)).fetchone()[0]
    return found


def _since(db: sqlite3.Connection, made: Plan, since_us: int) -> None:
    made.add("task.accepted_us >= ?", since_us)
    # Nothing below the lowest span since then needs to be looked at.
    lowest = db.execute("SELECT min(first) FROM span WHERE accepted_us >= ?", (since_us,)).fetchone()[0]
    made.add("task.n >= ?", 0 if lowest is None else lowest)
