"""Reads events, tasks and rules from a server and writes them to a history file.

Lists are read newest first, page by page, and each page is written with the cursor of the next
one: an export that is interrupted goes on there. The next one reads what has come since, a bit more
than that (OVERLAP_US), and the tasks that were open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from oncue.client import Client
from oncue.errors import Invalid, NotFound
from oncue.history.database import HistoryFile, Progress
from oncue.history.rows import (
    CLOSED,
    Row,
    attempt_rows,
    event_files,
    event_row,
    outcome_rows,
    rule_row,
    task_files,
    task_row,
)
from oncue.protocol.api import EventCount, EventInfo, TaskCount, TaskInfo

PAGE = 500
# Read again each time: clocks of servers differ, and views lag behind the log.
OVERLAP_US = 10 * 60 * 1_000_000
ASKED = 1_000  # open tasks that are asked for one by one; of more, the list is read from the oldest on

Report = Callable[[str, int, int | None], None]  # what, done, total (None: not known)


class _Listed(Protocol):
    """A resource of the client with a list."""

    def page(self, *, cursor: str, limit: int, since_us: int) -> tuple[list[Any], str | None]: ...
    def count(self, *, since_us: int) -> EventCount | TaskCount: ...


class _Source(NamedTuple):
    """One list of the server, and the rows of its items."""

    name: str
    listed: _Listed
    at_us: Callable[[Any], int]
    rows: Callable[[list[Any]], dict[str, list[Row]]]


def _events(client: Client, file: HistoryFile) -> _Source:
    def rows(items: list[EventInfo]) -> dict[str, list[Row]]:
        events = [event_row(item) for item in items]
        file.check_same_log(events)
        return {"events": events, "files": [row for item in items for row in event_files(item)]}

    return _Source("events", client.events, lambda item: item.at_us, rows)


def _tasks(client: Client, file: HistoryFile) -> _Source:
    def rows(items: list[TaskInfo]) -> dict[str, list[Row]]:
        offsets = file.events_of(task.event for task in items if task.event)
        return {
            "tasks": [task_row(task, offsets.get(task.event) if task.event else None) for task in items],
            "attempts": [row for task in items for row in attempt_rows(task)],
            "outcomes": [row for task in items for row in outcome_rows(task)],
            "files": [row for task in items for row in task_files(task)],
        }

    return _Source("tasks", client.tasks, lambda item: item.accepted_us, rows)


def export(client: Client, file: HistoryFile, report: Report, *, full: bool = False) -> None:
    """Bring a history file up to date. `full`: read everything again.

    Raises Unreachable and others of the API, Conflict, HistoryError. What is written stays, and the
    next export goes on from there.
    """
    server = client.me.server_id
    file.replace_rules([rule_row(rule) for rule in client.rules.list()])
    _read(_events(client, file), file, report, server, 0 if full else None)
    tasks = _tasks(client, file)
    open_tasks = file.open_tasks(ASKED + 1)
    many = len(open_tasks) > ASKED
    _read(tasks, file, report, server, 0 if full else file.oldest_open_us() if many else None)
    if not many:
        _read_ended(client, tasks, open_tasks, file, report)


def _read(source: _Source, file: HistoryFile, report: Report, server: str, since_us: int | None) -> None:
    """Read a list: the interval that was begun, then what has come since.

    `since_us`: read from there on, if that is earlier.
    """
    progress = file.progress(source.name)
    if progress.server and progress.server != server:
        progress.cursor = ""  # another server's view has other cursors
    if progress.server:
        progress = _read_interval(source, file, report, progress, server)
    since = max(0, progress.done_us - OVERLAP_US)
    progress.since_us = since if since_us is None else min(since, since_us)
    progress.top_us = progress.done_us
    _read_interval(source, file, report, progress, server)


def _read_interval(source: _Source, file: HistoryFile, report: Report, progress: Progress, server: str) -> Progress:
    """Read the pages of an interval from its cursor on; return the progress after it."""
    counted = source.listed.count(since_us=progress.since_us)
    total, done = None if counted.more else counted.count, 0
    progress.server = server
    while True:
        try:
            items, following = source.listed.page(cursor=progress.cursor, limit=PAGE, since_us=progress.since_us)
        except Invalid:  # the view was rebuilt: begin with the newest again
            if not progress.cursor:
                raise
            progress.cursor = ""
            continue
        progress.top_us = max([progress.top_us, *map(source.at_us, items)])
        progress.cursor = following or ""
        if following is None:
            progress.done_us, progress.server = max(progress.done_us, progress.top_us), ""
        file.write(source.rows(items), source.name, progress)
        done += len(items)
        report(source.name, done, total)
        if following is None:
            return progress


def _read_ended(client: Client, tasks: _Source, open_tasks: Sequence[str], file: HistoryFile, report: Report) -> None:
    """Read the tasks that were open before, and are so in the file still."""
    left = set(file.open_tasks(ASKED * 2)).intersection(open_tasks)
    progress = file.progress(tasks.name)
    for done, task in enumerate(sorted(left), 1):
        try:
            found = client.tasks.get(task)
        except NotFound:
            file.mark_forgotten(task)
            continue
        if found.state in CLOSED:
            file.write(tasks.rows([found]), tasks.name, progress)
        report("tasks that were open", done, len(left))
