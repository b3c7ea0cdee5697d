"""Turns task states of the view into the TaskInfo and the timeline of the API.

Pure functions. No pickle is loaded, so no code of a user runs: a note describes the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from oncue.errors import Undecodable
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.codec import decode
from oncue.protocol.priority import priority_word
from oncue.protocol.records import OK, STATUS_NAMES, Ended, Failure
from oncue.protocol.retry_policy import RETRYABLE, why_not_retried, why_retried
from oncue.protocol.run_options import affinity_of
from oncue.protocol.stated_options import resources_request
from oncue.task_lifecycle import Attempt, State, TaskState, phase

SHOWN_BYTES = 64 * 1024  # a larger value is described; a request for the outcome returns it


def failure_info(value: bytes) -> r.FailureInfo | None:
    """Return a stored Failure for the API; None if there is none."""
    if not value:
        return None
    try:
        f = decode(Failure, value)
    except Undecodable as e:
        return r.FailureInfo(type="oncue.Undecodable", message=e.message)
    return r.FailureInfo(
        type=f.type,
        message=f.message,
        traceback=f.traceback,
        remedy=f.remedy,
        exit_code=f.exit_code,
        folder=f.folder,
    )


def file_infos(attempt: Attempt | None) -> list[r.TaskFileInfo]:
    """Return the files that an attempt has left."""
    if attempt is None or not attempt.value:
        return []
    try:
        found = payload.files_of(attempt.value) if attempt.status == OK else decode(Failure, attempt.value).files
    except Undecodable:
        return []
    return [r.TaskFileInfo(name=f.name, sha256=f.sha256, size_bytes=f.size_bytes, stream=f.stream) for f in found]


def displayed(value: bytes) -> Any:
    """Return a payload as JSON if it is plain and small, else a note about it."""
    if len(value) > SHOWN_BYTES and value[:1] == payload.MSGPACK:
        return f"a value of {len(value) - 1:,} bytes"
    try:
        return _jsonable(payload.peek(value)[1])
    except Undecodable as e:
        return f"cannot be shown: {e.message}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)  # JSON has no such numbers
    return value


def attempt_info(a: Attempt) -> r.AttemptInfo:
    """Return an attempt for the API."""
    return r.AttemptInfo(
        n=a.n,
        status=STATUS_NAMES[a.status],
        started_us=a.started_us,
        ended_us=a.ended_us,
        superseded=a.superseded,
        error=None if a.status == OK else failure_info(a.value),
    )


def phase_of(state: TaskState) -> str:
    """Return the state as users see it."""
    return phase(state.state, state.attempt, state.running[0], state.cancel_us)


def task_info(state: TaskState, endpoint_name: Callable[[str], str], why: str = "", sent: bool = False) -> r.TaskInfo:
    """Return a task for the API.

    `why`: the reason why it is open. `sent`: it is at its agent. `endpoint_name`: id -> name.
    """
    call = state.call
    assert call is not None
    closing = state.closing
    last = closing or (state.attempts[-1] if state.attempts else None)
    error = failure_info(last.value) if last is not None and last.status != OK else None
    good = closing is not None and closing.status == OK
    return r.TaskInfo(
        id=state.id.hex(),
        state=phase_of(state),
        function=call.function,
        name=call.name,
        endpoint=endpoint_name(call.endpoint),
        endpoint_id=call.endpoint,
        owner=call.owner,
        rule=call.rule,
        rule_version=call.rule_version,
        event=state.event,
        retry_of=state.retry_of.hex(),
        replay=call.replay,
        attempt=state.attempt,
        accepted_us=state.accepted_us,
        started_us=closing.started_us if closing else (state.running[1] if state.running[0] == state.attempt else 0),
        ended_us=closing.ended_us if closing else 0,
        due_us=state.due_us,
        expires_us=call.expires_us,
        timeout_ms=call.timeout_ms,
        mark_us=state.mark_us,
        sent=sent,
        why=why or (error.line if error else ""),
        value=displayed(closing.value) if good and closing else None,
        has_value=good,
        error=error,
        output=last.output.decode("utf-8", "replace") if last else "",
        arguments=displayed(state.args) if state.args else None,
        attempts=[attempt_info(a) for a in state.attempts],
        resources=resources_request(call.run.resources if call.run else None),
        affinity=affinity_of(call.run),
        priority=priority_word(call.priority),
        files=file_infos(last),
    )


def with_usage(info: r.TaskInfo, usage: Mapping[int, tuple[int, int]]) -> r.TaskInfo:
    """Return the task with the use of its attempts: number -> (CPU time, memory)."""
    if not usage:
        return info
    replace = msgspec.structs.replace
    attempts = [
        replace(a, cpu_us=usage[a.n][0], peak_bytes=usage[a.n][1]) if a.n in usage else a for a in info.attempts
    ]
    return replace(info, attempts=attempts)


def timeline(
    state: TaskState, workers: Mapping[int, str], endpoint_name: Callable[[str], str]
) -> list[r.TimelineEntry]:
    """Return the events of a task, oldest first.

    `workers`: of its attempts, as far as known.
    """
    call = state.call
    assert call is not None
    entries: list[r.TimelineEntry] = []
    if state.mark_us:
        cause = f"event {state.event[1]} of {state.event[0]}" if state.event else ""
        entries.append(r.TimelineEntry(at_us=state.mark_us, what="cue", detail=cause))
    by = f"rule {call.rule} (version {call.rule_version})" if call.rule else call.owner
    where = endpoint_name(call.endpoint)
    entries.append(r.TimelineEntry(at_us=state.accepted_us, what="accepted", detail=f"by {by}, for endpoint {where}"))
    if state.cancel_us:
        entries.append(r.TimelineEntry(at_us=state.cancel_us, what="cancel asked for", detail=state.cancel_by))
    for a in state.attempts:
        if a.started_us:
            entries.append(_started(a.started_us, a.n, workers))
        failure = None if a.status == OK else failure_info(a.value)
        outcome = f"attempt {a.n}: {STATUS_NAMES[a.status]}" + (f": {failure.line}" if failure else "")
        late = " (superseded: it came too late to count)" if a.superseded else ""
        detail = outcome + late + _retry_text(state, a)
        entries.append(r.TimelineEntry(at_us=a.ended_us, what="ended", detail=detail))
    if not state.state.closed and state.running[0] == state.attempt:
        entries.append(_started(state.running[1], state.attempt, workers))
    if state.state is State.WAITING and state.due_us:
        entries.append(r.TimelineEntry(at_us=state.due_us, what="retry due", detail=f"attempt {state.attempt}"))
    return sorted(entries, key=lambda e: e.at_us)


def _started(at_us: int, attempt: int, workers: Mapping[int, str]) -> r.TimelineEntry:
    where = f" at {workers[attempt]}" if attempt in workers else ""
    return r.TimelineEntry(at_us=at_us, what="started", detail=f"attempt {attempt}{where}")


def _retry_text(state: TaskState, a: Attempt) -> str:
    """Return why an attempt was retried or not; "" without a policy or a choice."""
    policy = state.call.retry if state.call else None
    if policy is None or a.superseded or a.status not in RETRYABLE:
        return ""
    ended = Ended(state.id, a.n, a.status, a.started_us, a.ended_us, a.value)
    if a is state.closing:
        why = why_not_retried(policy, ended, state.accepted_us)
        return f"; not retried: {why}" if why else ""
    why = why_retried(policy, ended)
    return f"; retried: {why}" if why else "; retried"
