"""Tables that a notebook shows for clients, tasks and lists.

They ask the server for a moment only: a cell that shows an object must not wait for a server that
is away, and never raises.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from oncue.client.batch import Batch
from oncue.client.session import Session
from oncue.errors import OncueError
from oncue.protocol.api import EndpointInfo, TaskInfo
from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import STATUS_NAMES, Ended, Failure
from oncue.task_lifecycle import state_text
from oncue.text.html_table import Html, table, time_text

ROWS = 20  # of a list
LISTED = 3  # texts of a cell
ASKED_S = 2.0
_COLUMNS = ("id", "function", "endpoint", "state", "duration", "why")


class Handle(Protocol):
    """The part of a Task that is shown."""

    _batch: Batch[Session]

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    def _ended(self) -> Ended | None: ...


def client_table(session: Session) -> str:
    """Return the server's address and the endpoints."""
    try:
        url, _ = session.http.target()
        me = session.sender.me()
        answer = session.http.request("GET", "/v1/endpoints", timeout_s=ASKED_S, limited_s=0)
    except OncueError as e:
        return error_text(e)
    head = f'<p>oncue at <a href="{html.escape(url)}" target="_blank">{html.escape(url)}</a> as {html.escape(me.subject)}</p>'
    endpoints = msgspec.json.decode(answer.body, type=list[EndpointInfo])
    rows = [(e.name, e.state, e.workers, e.waiting) for e in endpoints]
    return head + table(("endpoint", "state", "workers", "waiting"), rows)


def error_text(error: OncueError) -> str:
    return f"<p>oncue: {html.escape(error.message)}<br>{html.escape(error.remedy)}</p>"


def task_table(task: Handle) -> str:
    """Return a task with its state, and why it waits or failed."""
    return table(_COLUMNS, [_task_row(task, _info(task))])


def tasks_table(tasks: Sequence[Handle]) -> str:
    """Return the first tasks, and counts of the states that this client knows."""
    states: dict[str, int] = {}
    for task in tasks:
        state = _state(task)
        states[state] = states.get(state, 0) + 1
    counts = ", ".join(f"{n:,} {state}" for state, n in sorted(states.items()))
    shown = table(_COLUMNS, [_task_row(task, None) for task in tasks[:ROWS]])
    more = f"<p>and {len(tasks) - ROWS:,} more</p>" if len(tasks) > ROWS else ""
    return f"<p>{len(tasks):,} tasks{': ' if counts else ''}{counts}</p>{shown}{more}"


def records_table(session: Session, records: Iterable[Any], more: bool) -> str:
    """Return a table of the API's records. `more`: there are others."""
    records = list(records)
    if not records:
        return "<p>nothing</p>"
    if isinstance(records[0], TaskInfo):
        rows = [_info_row(session, info) for info in records]
        return table(_COLUMNS, rows) + ("<p>and more</p>" if more else "")
    fields = _columns(records)
    rows = [tuple(_cell(name, read(r)) for name, read in fields) for r in records]
    return table([name.removesuffix("_us") for name, _ in fields], rows) + ("<p>and more</p>" if more else "")


def _columns(records: Sequence[Any]) -> list[tuple[str, Callable[[Any], Any]]]:
    """Return the fields with a short value, not the default, in some record.

    Of an event, its attributes instead.
    """
    kind = type(records[0])
    defaults = dict(zip(reversed(kind.__struct_fields__), reversed(kind.__struct_defaults__), strict=False))
    columns: list[tuple[str, Callable[[Any], Any]]] = []
    for name in kind.__struct_fields__:
        if name == "event":
            columns += [(key, partial(_of_event, key)) for key in ("type", "source", "subject")]
            continue
        read = attrgetter(name)
        if any(_cell(name, read(r)) and read(r) != defaults.get(name) for r in records):
            columns.append((name, read))
    return columns


def _of_event(key: str, record: Any) -> Any:
    return (record.event or {}).get(key)


def _cell(name: str, value: Any) -> str:
    """Return a value as text; "" if it is no short one."""
    if name.endswith("_us") and isinstance(value, int):
        return time_text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value[:LISTED]) + (f" and {len(value) - LISTED:,} more" if len(value) > LISTED else "")
    return str(value) if isinstance(value, str | int | float) and len(str(value)) < 200 else ""


def _state(task: Handle) -> str:
    return "rejected" if task._batch.error is not None else state_text(task._ended())


def _info(task: Handle) -> TaskInfo | None:
    """Return the server's information; None if it does not answer at once."""
    if not task._batch.accepted and task._batch.pid:
        return None
    session = task._batch.session
    try:
        answer = session.http.request("GET", f"/v1/tasks/{task.id}", timeout_s=ASKED_S, limited_s=0)
    except OncueError:
        return None
    return msgspec.json.decode(answer.body, type=TaskInfo)


def _task_row(task: Handle, info: TaskInfo | None) -> tuple[object, ...]:
    session = task._batch.session
    if info is not None:
        return _info_row(session, info)
    ended, why = task._ended(), ""
    if task._batch.error is not None:
        why = task._batch.error.message
    elif ended is not None and ended.status:
        why = _failure(ended)
    took = "" if ended is None else _seconds(ended.ended_us - ended.started_us if ended.started_us else 0)
    endpoint = task._batch.options.endpoint if task._batch.pid else ""
    return _link(session, task.id), task.name, endpoint, _state(task), took, why


def _info_row(session: Session, info: TaskInfo) -> tuple[object, ...]:
    until_us = info.ended_us or time.time_ns() // 1000
    took = _seconds(until_us - info.started_us) if info.started_us else ""
    why = info.why or (info.error.line if info.error else "")
    return _link(session, info.id), info.name, info.endpoint, info.state, took, why


def _failure(ended: Ended) -> str:
    """Return why a task failed, from its record: to make the exception may run code."""
    try:
        found = msgspec.msgpack.decode(ended.value, type=Failure)
    except DECODE_ERRORS:
        return STATUS_NAMES[ended.status]
    kind = found.type or STATUS_NAMES[ended.status]
    return f"{kind}: {found.message.strip().splitlines()[0]}" if found.message.strip() else kind


def _seconds(us: int) -> str:
    return f"{us / 1e6:,.3g} s" if us > 0 else ""


def _link(session: Session, task_id: str) -> str:
    """Return the task's id as a link to the server's page."""
    try:
        url, _ = session.http.target()
    except OncueError:
        return task_id
    return Html(f'<a href="{html.escape(url)}/#{task_id}" target="_blank">{task_id}</a>')
