"""Rows of the history, made of the API's events, tasks and rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from oncue.protocol.api import FAILED_STATES, EventInfo, FailureInfo, RuleInfo, TaskInfo
from oncue.protocol.event_types import FILE_EVENT, OUTCOME_SOURCE

Row = dict[str, Any]
CLOSED = frozenset(("succeeded", "cancelled", *FAILED_STATES.split(",")))
_ATTRIBUTES = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "data", "data_base64", "datacontenttype", "dataschema")
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_text(us: float) -> str | None:
    """Return a unix time in µs as ISO 8601 of UTC; None for 0.

    Also None for a time that no calendar has.
    """
    try:
        return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds") if us else None
    except (OverflowError, ValueError):
        return None


def time_us(text: str) -> int:
    """Return the unix time in µs of a text by `time_text`."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def _json(value: Any) -> str | None:
    return None if value is None else _storable(msgspec.json.encode(value).decode())


def _text(value: Any) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None


def _storable(text: str) -> str:
    """Return text without lone surrogates, which SQLite cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _number(value: Any) -> int | None:
    """Return an integer that SQLite can hold, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63 else None


def event_row(info: EventInfo) -> Row:
    event = info.event
    data = event.get("data", event.get("data_base64"))
    more = {name: value for name, value in event.items() if name not in _ATTRIBUTES}
    return {
        "offset": info.offset,
        "id": _text(event.get("id")),
        "source": _text(event.get("source")),
        "type": _text(event.get("type")),
        "subject": _text(event.get("subject")),
        "time": _text(event.get("time")),
        "stored_at": time_text(info.at_us),
        "trigger": _text(event.get("oncuetrigger")),
        "data": _json(data),
        "extensions": _json(more or None),
    }


def event_files(info: EventInfo) -> Iterator[Row]:
    """Yield the file that an event of a file trigger is about."""
    data = info.event.get("data")
    if info.event.get("type") != FILE_EVENT or not isinstance(data, Mapping) or not _text(data.get("path")):
        return
    modified = data.get("mtime")
    yield {
        "id": f"event:{info.offset}",
        "role": "input",
        "path": _text(data["path"]),
        "name": _text(data.get("name")),
        "size_bytes": _number(data.get("size")),
        "modified_at": time_text(modified * 1e6) if isinstance(modified, int | float) else None,
        "sha256": None,
        "host": _text(data.get("host")),
        "event": info.offset,
        "task": None,
    }


def task_row(task: TaskInfo, event: int | None) -> Row:
    """Return the row of a task.

    `event`: the offset of its event; None: it is not in the history.
    """
    source, event_id = task.event or ("", "")
    started, ended = task.started_us, task.ended_us
    return {
        "id": task.id,
        "name": _text(task.name),
        "function": _text(task.function),
        "rule": _text(task.rule),
        "rule_version": task.rule_version or None,
        "endpoint": _text(task.endpoint),
        "owner": _text(task.owner),
        "state": task.state,
        "closed": int(task.state in CLOSED),
        "attempt": task.attempt,
        "accepted_at": time_text(task.accepted_us),
        "started_at": time_text(started),
        "ended_at": time_text(ended),
        "waited_s": (started - task.accepted_us) / 1e6 if started and task.accepted_us else None,
        "ran_s": (ended - started) / 1e6 if started and ended else None,
        "event": event,
        "event_source": _text(source),
        "event_id": _text(event_id),
        "after": _text(event_id) if source == OUTCOME_SOURCE else None,
        "retry_of": _text(task.retry_of),
        "replaced_by": _text(task.replaced_by),
        "why": _text(task.why),
        "arguments": _json(task.arguments),
        "resources": _json(task.resources or None),
        "affinity": _text(task.affinity),
        "priority": task.priority,
        "replay": _text(task.replay),
        "forgotten": 0,
    }


def _error(error: FailureInfo | None) -> Row:
    return {
        "error_type": _text(error.type) if error else None,
        "error_message": _text(error.message) if error else None,
        "error_traceback": _text(error.traceback) if error else None,
        "exit_code": error.exit_code if error and error.exit_code >= 0 else None,
    }


def attempt_rows(task: TaskInfo) -> Iterator[Row]:
    for position, a in enumerate(task.attempts, 1):
        yield {
            "task": task.id,
            "position": position,
            "number": a.n,
            "status": a.status,
            "started_at": time_text(a.started_us),
            "ended_at": time_text(a.ended_us),
            "ran_s": (a.ended_us - a.started_us) / 1e6 if a.started_us and a.ended_us else None,
            "superseded": int(a.superseded),
        } | _error(a.error)


def outcome_rows(task: TaskInfo) -> Iterator[Row]:
    """Yield the outcome of a task that is closed."""
    if task.state not in CLOSED:
        return
    yield {
        "task": task.id,
        "state": task.state,
        "ended_at": time_text(task.ended_us),
        "value": _json(task.value) if task.has_value else None,
        "output": _text(task.output),
        "remedy": _text(task.error.remedy) if task.error else None,
    } | _error(task.error)


def task_files(task: TaskInfo) -> Iterator[Row]:
    """Yield the files that a closed task has left."""
    for file in task.files if task.state in CLOSED else ():
        role = file.stream or "output"
        yield {
            "id": f"task:{task.id}/{role}/{_storable(file.name)}",
            "role": role,
            "path": None,
            "name": _text(file.name),
            "size_bytes": file.size_bytes,
            "modified_at": None,
            "sha256": file.sha256,
            "host": None,
            "event": None,
            "task": task.id,
        }


def rule_row(rule: RuleInfo) -> Row:
    return {
        "name": rule.name,
        "state": rule.state,
        "label": rule.label,
        "version": rule.version,
        "starts_on": _json(rule.on),
        "runs": _json(rule.runs),
        "endpoint": _text(rule.endpoint),
        "text": _text(rule.text),
    }
