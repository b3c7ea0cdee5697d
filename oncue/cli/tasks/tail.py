"""Lines of `oncue tasks tail` and `oncue events tail`: aligned, the newest last."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import click

from oncue.cli.output import STATES, WHOLE_ID, safe, took
from oncue.client import Client
from oncue.protocol.api import EventInfo, TaskInfo

KEPT = 200  # closed tasks whose start may still come
READ_S = 0.2  # before a read of the list of events
READ_EVENTS = 500  # at once; of more, the oldest are left out


class TaskLines:
    """Turns tasks and live items into lines."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names: dict[str, str] = {}  # of endpoints, by id
        self._closed: deque[str] = deque(maxlen=KEPT)

    def of_task(self, t: TaskInfo) -> str:
        ran = took(t.started_us, t.ended_us)
        return self._line(t.ended_us or t.started_us or t.accepted_us, t.state, t.id, t.name, t.endpoint, ran, t.why)

    def is_news(self, item: Mapping[str, Any]) -> bool:
        """Return False for the start of a task whose end was shown: that may come first."""
        task = str(item.get("id", ""))
        if item.get("ended_us"):
            self._closed.append(task)
            return True
        return task not in self._closed

    def of_item(self, item: Mapping[str, Any]) -> str:
        """Return the line of a live item: a task that was accepted, runs, or has closed."""
        started, ended = item.get("started_us") or 0, item.get("ended_us") or 0
        at = ended or started or item.get("accepted_us") or 0
        where = self._endpoint(str(item.get("endpoint", "")))
        name = str(item.get("name") or str(item.get("function", ""))[:12])
        ran = took(started, ended) if ended else ""
        return self._line(
            at, str(item.get("state", "")), str(item.get("id", "")), name, where, ran, str(item.get("why") or "")
        )

    def _endpoint(self, endpoint: str) -> str:
        if endpoint not in self._names:
            self._names = {e.id: e.name for e in self._client.endpoints.list()}
            self._names.setdefault(endpoint, endpoint)
        return self._names[endpoint]

    def _line(self, at_us: int, state: str, task: str, *cells: str) -> str:
        """`cells`: function, endpoint, duration, reason."""
        name, endpoint, ran, why = cells
        shown = (_padded(name, 16), _padded(endpoint, 10), _padded(ran, 9), safe(why))
        return _columns(at_us, _padded(state, 10, STATES.get(state)), _shown_id(task), *shown)


def event_line(e: EventInfo) -> str:
    """Return the line of an event."""
    type_, source, subject = (str(e.event.get(name) or "") for name in ("type", "source", "subject"))
    tasks = f"{len(e.tasks)} task{'s' if len(e.tasks) > 1 else ''}" if e.tasks else ""
    offset = _padded(str(e.offset), 6)
    return _columns(e.at_us, offset, _padded(type_, 18), _padded(source, 20), _padded(subject, 24), tasks)


class NewEvents:
    """Reads the events that have come since the last read."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: set[int] = set()

    def has(self, offset: int) -> bool:
        """Return True if the event at this offset was read."""
        return offset in self._seen

    def read(self, count: int) -> list[EventInfo]:
        """Return at most so many, oldest first."""
        found = []
        for e in self._client.events.list(limit=min(count, READ_EVENTS)):
            if e.offset in self._seen:
                break
            found.append(e)
        if found:
            self._seen = {e.offset for e in found} | (self._seen if len(self._seen) < READ_EVENTS else set())
        return found[::-1]


def _columns(at_us: int, *cells: str) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(at_us / 1e6)) if at_us else " " * 8
    return "  ".join((at, *cells)).rstrip()


def _padded(text: str, width: int, color: str | None = None) -> str:
    text = safe(text)
    if len(text) > width and sys.stdout.isatty():
        text = text[: width - 1] + "…"
    return click.style(text, fg=color) + " " * (width - len(text)) if color else text.ljust(width)


def _shown_id(task: str) -> str:
    """Return the id, or in a narrow terminal a short form that suffices nearly always."""
    if not sys.stdout.isatty() or shutil.get_terminal_size().columns >= WHOLE_ID:
        return task
    return f"{task[:12]}..{task[-4:]}"
