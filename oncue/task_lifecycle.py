"""Task state machine: decides if a task is retried, when, and how it closes.

A pure fold (state, record) -> state, shared by the view, the endpoint's channel and the web page.

    accepted ──► WAITING ──attempt ended──► retry_due()? ──yes──► WAITING (attempt + 1, due_us)
                                                └──no──► SUCCEEDED | FAILED | LOST | TIMED_OUT
                                                         | CANCELLED | EXPIRED | REFUSED

Retries, their times and their jitter follow from the records alone, so no timer can be lost. All
records that end attempts of one task are in one partition of `oncue.results`. The first closing
record in offset order wins. A success of any attempt closes an open task. Later records are kept as
superseded attempts.

Records of different topics may arrive in any order (an outcome before its task), and any record may
arrive twice: the resulting state is the same (property test: tests/unit/test_lifecycle.py).
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from oncue.protocol.codec import build_decoders
from oncue.protocol.records import (
    CANCELLED,
    ERROR,
    EXPIRED,
    LOST,
    OK,
    REFUSED,
    TIMEOUT,
    Call,
    Ended,
    TaskRecord,
)
from oncue.protocol.retry_policy import delay_us, retry_due

#: Attempts of a task that keep their failure and output: the first, and this many of the last.
FULL_ATTEMPTS = 20
#: Ends of a task that came too late to count; more are not kept.
MAX_SUPERSEDED = 100


class State(IntEnum):
    """State of a task: WAITING is open (even while it runs), others are closed."""

    WAITING = 0  # accepted; runs when its endpoint has room, not before due_us
    SUCCEEDED = 1  # an attempt returned a value
    FAILED = 2  # the function raised, and no retry is left
    LOST = 3  # its worker or endpoint died
    TIMED_OUT = 4  # it ran longer than its timeout
    CANCELLED = 5  # cancelled by a person or program
    EXPIRED = 6  # it did not start in time
    REFUSED = 7  # the endpoint refused to run it

    @property
    def closed(self) -> bool:
        return self is not State.WAITING


CLOSED_AS = {
    OK: State.SUCCEEDED,
    ERROR: State.FAILED,
    LOST: State.LOST,
    TIMEOUT: State.TIMED_OUT,
    CANCELLED: State.CANCELLED,
    EXPIRED: State.EXPIRED,
    REFUSED: State.REFUSED,
}
STATE_WORDS = {status: state.name.lower() for status, state in CLOSED_AS.items()}


def state_text(ended: Ended | None) -> str:
    """Return the state of a task with this outcome as a word; "open" without one."""
    return "open" if ended is None else STATE_WORDS[ended.status]


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """An ended attempt; `superseded` if it ended too late to count."""

    n: int
    status: int
    started_us: int
    ended_us: int
    value: bytes = b""
    output: bytes = b""
    superseded: bool = False

    def same_as(self, e: Ended) -> bool:
        return (self.n, self.status, self.started_us, self.ended_us) == (e.attempt, e.status, e.started_us, e.ended_us)


class TaskState(msgspec.Struct, frozen=True):
    """A task as folded from its records."""

    id: bytes
    known: bool = False  # the task's own record was folded (an outcome may arrive first)
    call: Call | None = None
    args: bytes = b""
    accepted_us: int = 0
    event: tuple[str, str] | None = None
    retry_of: bytes = b""
    mark_us: int = 0
    state: State = State.WAITING
    attempt: int = 1  # open: the current attempt; closed: the attempt that closed it
    due_us: int = 0  # open: earliest start of the current attempt
    attempts: tuple[Attempt, ...] = ()  # ended attempts, in the order of their records
    running: tuple[int, int] = (0, 0)  # (attempt, started_us) of the newest reported start, if any
    cancel_us: int = 0  # time of the first cancel request; 0: none
    cancel_by: str = ""

    @property
    def closing(self) -> Attempt | None:
        """The attempt that closed the task."""
        if not self.state.closed:
            return None
        return next(a for a in self.attempts if a.n == self.attempt and not a.superseded)


def start_us(call: Call, task_id: bytes, attempt: int, due_us: int, now_us: int) -> int:
    """Return when a waiting attempt may start.

    It waits for the pause before it at most: `due_us` may be of a clock that was ahead and was put
    right since.
    """
    if due_us <= now_us or call.retry is None or attempt < 2:
        return due_us
    return min(due_us, now_us + delay_us(call.retry, task_id, attempt - 1))


def accept(state: TaskState | None, call: Call, task: TaskRecord, accepted_us: int) -> TaskState:
    """Fold the task's own record.

    A repeated record with the same id changes nothing.
    """
    state = state or TaskState(task.id)
    if state.known:
        return state
    return msgspec.structs.replace(
        state,
        known=True,
        call=call,
        args=task.args,
        accepted_us=accepted_us,
        event=task.event,
        retry_of=task.retry_of,
        mark_us=task.mark_us,
    )


def end(state: TaskState | None, call: Call, accepted_us: int, ended: Ended) -> TaskState:
    """Fold the end of an attempt: retry, close, or keep it as superseded."""
    state = state or TaskState(ended.id)
    if any(a.same_as(ended) for a in state.attempts):
        return state
    if state.call is None:  # the outcome has arrived before its task
        state = msgspec.structs.replace(
            state,
            call=call,
            accepted_us=accepted_us,
            event=ended.event,
            retry_of=ended.retry_of,
            mark_us=ended.mark_us,
        )
    already = any(a.n == ended.attempt and not a.superseded for a in state.attempts)
    superseded = state.state.closed or (ended.status != OK and (already or ended.attempt < state.attempt))
    record = Attempt(
        ended.attempt, ended.status, ended.started_us, ended.ended_us, ended.value, ended.output, superseded
    )
    if superseded:
        if sum(a.superseded for a in state.attempts) >= MAX_SUPERSEDED:
            return state
        return msgspec.structs.replace(state, attempts=_append(state.attempts, record, state.closing))
    if already:  # a success of an attempt that was declared lost or timed out replaces that end
        kept = tuple(msgspec.structs.replace(a, superseded=True) if a.n == ended.attempt else a for a in state.attempts)
        state = msgspec.structs.replace(state, attempts=kept)
    due = retry_due(call.retry, ended, accepted_us)
    if due is not None:
        attempts = _append(state.attempts, record)
        return msgspec.structs.replace(state, attempts=attempts, attempt=ended.attempt + 1, due_us=due)
    return msgspec.structs.replace(
        state,
        attempts=_append(state.attempts, record),
        attempt=ended.attempt,
        due_us=0,
        state=CLOSED_AS[ended.status],
    )


def _append(attempts: tuple[Attempt, ...], record: Attempt, closing: Attempt | None = None) -> tuple[Attempt, ...]:
    """Append an attempt, and bound the texts of those before it.

    The one that is no longer among the last ones loses its texts, so a task with 1,000 failures is
    read and written as fast as one with 20.
    """
    oldest = len(attempts) - FULL_ATTEMPTS
    if oldest < 1 or attempts[oldest] is closing:
        return (*attempts, record)
    bare = msgspec.structs.replace(attempts[oldest], value=b"", output=b"")
    return (*attempts[:oldest], bare, *attempts[oldest + 1 :], record)


def cancel(state: TaskState | None, task_id: bytes, at_us: int, by: str) -> TaskState:
    """Fold a cancel request.

    The endpoint's owner then ends the attempt; the first closing record decides the outcome.
    """
    state = state or TaskState(task_id)
    if state.cancel_us:
        return state
    return msgspec.structs.replace(state, cancel_us=at_us or 1, cancel_by=by)  # 0 means no request


def started(state: TaskState | None, task_id: bytes, attempt: int, started_us: int) -> TaskState:
    """Fold a report that an attempt runs."""
    state = state or TaskState(task_id)
    return msgspec.structs.replace(state, running=max(state.running, (attempt, started_us)))


def phase(state: State, attempt: int, running_attempt: int, cancel_us: int) -> str:
    """Return the state as users see it.

    One of waiting, retrying, running, cancelling, or the name of the closed state.
    """
    if state.closed:
        return state.name.lower()
    if cancel_us:
        return "cancelling"
    if running_attempt == attempt:
        return "running"
    return "retrying" if attempt > 1 else "waiting"


build_decoders(globals())
