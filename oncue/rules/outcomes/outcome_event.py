"""Outcome events: CloudEvents made of closed tasks, for rules `on: {done: RULE}`.

They are not stored: source, id and content follow from the records of the task, so an outcome that
is read twice gives the same event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from oncue.errors import Undecodable
from oncue.protocol import payload
from oncue.protocol.codec import decode
from oncue.protocol.event_types import OUTCOME_SOURCE, OUTCOME_TYPE, chain_depth
from oncue.protocol.records import OK, Event, Failure
from oncue.protocol.run_options import TaskFiles
from oncue.task_lifecycle import STATE_WORDS, Attempt, TaskState
from oncue.view.chains.causes import Cause

VALUE_BYTES = 64 * 1024  # of the arguments, of the result and of the first event; larger ones are left out
TEXT_CHARS = 8_192  # of a failure's message and traceback
STATES = tuple(STATE_WORDS.values())
#: Fields of `data`. Those that a task does not have are left out.
FIELDS: Mapping[str, type] = {
    "task": str,
    "rule": str,
    "rule_version": int,
    "function": str,
    "endpoint": str,
    "owner": str,
    "state": str,
    "attempts": int,
    "accepted": str,
    "started": str,
    "ended": str,
    "args": object,
    "value": object,
    "files": list,
    "failure": dict,
    "event": dict,
    "omitted": dict,
}


def outcome_event(state: TaskState, cause: Cause, endpoint: str) -> Event:
    """Return the event of a closed task.

    `endpoint`: its name. `data.event` is the event with which the chain began.
    """
    call, closing = state.call, state.closing
    assert call is not None
    assert closing is not None
    word = STATE_WORDS[closing.status]
    omitted: dict[str, str] = {}
    data: dict[str, Any] = {
        "task": state.id.hex(),
        "function": call.name,
        "endpoint": endpoint,
        "owner": call.owner,
        "state": word,
        "attempts": closing.n,
        "accepted": _time(state.accepted_us),
        "ended": _time(closing.ended_us),
    }
    if call.rule:
        data |= {"rule": call.rule, "rule_version": call.rule_version}
    if closing.started_us:
        data["started"] = _time(closing.started_us)
    data |= _arguments(state.args, omitted)
    data |= _result(closing, omitted) if closing.status == OK else _failure(closing)
    if cause.key is not None:
        data["event"] = _event_data(cause, omitted)
    if omitted:
        data["omitted"] = omitted
    return Event(
        id=state.id.hex(),
        source=OUTCOME_SOURCE,
        type=OUTCOME_TYPE + word,
        subject=call.rule or call.name or None,
        time=_time(closing.ended_us),
        datacontenttype="application/json",
        data=data,
        extensions=_extensions(state, closing, cause),
    )


def _extensions(state: TaskState, closing: Attempt, cause: Cause) -> dict[str, str | int | bool]:
    """Return depth in the chain, time for ids, and the time of the first cause."""
    depth = cause.depth + 1 + (chain_depth(cause.event) if cause.event is not None else 0)
    found: dict[str, str | int | bool] = {"oncuedepth": str(depth), "oncuetimems": str(closing.ended_us // 1000)}
    if state.mark_us > 0:
        found["oncuemarkus"] = str(state.mark_us)
    return found


def _arguments(packed: bytes, omitted: dict[str, str]) -> dict[str, Any]:
    """Return `args`: a mapping of keyword arguments, or a list of positional ones."""
    found = _plain(packed, "args", omitted)
    if found is None:
        return {}
    args, kwargs = found
    if args and kwargs:
        return {"args": {str(n): value for n, value in enumerate(args)} | kwargs}
    return {"args": kwargs or args}


def _result(closing: Attempt, omitted: dict[str, str]) -> dict[str, Any]:
    value = _plain(closing.value, "value", omitted)
    found = {} if "value" in omitted else {"value": value}
    try:
        files = payload.files_of(closing.value)
    except Undecodable:
        files = ()
    return found | _files(files)


def _files(files: TaskFiles) -> dict[str, Any]:
    return {"files": [{"name": f.name, "sha256": f.sha256, "size": f.size_bytes} for f in files]} if files else {}


def _failure(closing: Attempt) -> dict[str, Any]:
    if not closing.value:
        return {}
    try:
        f = decode(Failure, closing.value)
    except Undecodable as e:
        return {"failure": {"type": "oncue.Undecodable", "message": e.message}}
    found: dict[str, Any] = {"type": f.type, "message": f.message[:TEXT_CHARS], "traceback": f.traceback[:TEXT_CHARS]}
    if f.exit_code >= 0:
        found["exit_code"] = f.exit_code
    return {"failure": found} | _files(f.files)


def _event_data(cause: Cause, omitted: dict[str, str]) -> dict[str, Any]:
    """Return the event with which the chain began.

    It has no data if it is not kept any more, or too large.
    """
    assert cause.key is not None
    source, event_id = cause.key
    event = cause.event
    if event is None:
        omitted["event"] = "the event is not kept any more"
        return {"source": source, "id": event_id}
    found: dict[str, Any] = {"source": source, "id": event_id, "type": event.type}
    found |= {n: v for n in ("subject", "time") if (v := getattr(event, n)) is not None}
    if isinstance(event.data, bytes):
        omitted["event"] = f"its data is binary, {len(event.data):,} bytes"
    elif cause.size_bytes > VALUE_BYTES:
        omitted["event"] = f"it has {cause.size_bytes:,} bytes; at most {VALUE_BYTES:,} are kept along a chain"
    elif event.data is not None:
        found["data"] = event.data
    return found


def _plain(packed: bytes, name: str, omitted: dict[str, str]) -> Any:
    """Return a payload as a JSON value; None, and a note in `omitted`, if it is none."""
    try:
        plain, value = payload.peek(packed) if len(packed) <= VALUE_BYTES else (False, f"{len(packed):,} bytes")
    except Undecodable as e:
        plain, value = False, e.message
    if not plain:
        omitted[name] = str(value)
        return None
    try:
        return _as_json(value)
    except ValueError as e:
        omitted[name] = str(e)
        return None


def _as_json(value: Any) -> Any:
    """Raises ValueError: JSON has no such value."""
    kind = type(value)
    if kind is list:
        return [_as_json(v) for v in value]
    if kind is dict:
        return {k: _as_json(v) for k, v in value.items()}
    if kind is bytes:
        raise ValueError("it has bytes, which an event in JSON cannot hold")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"it has {value}, which JSON does not have")
    return value


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
