"""One task, one outcome: the pure fold (state, record) -> state that the projector, the owner, rules and the page share.

    accepted ──► WAITING ──attempt ends──► retry due? ──yes──► WAITING (attempt + 1, due_us)
                                               └──no──► SUCCEEDED | FAILED | LOST | TIMED_OUT | CANCELLED | EXPIRED | REFUSED

Whether an ended attempt is retried or closes the task, when the retry is due, and its jitter follow from the records alone:
nobody holds a timer that can be lost. All records that end attempts of one task are in one partition of `oncue.results`;
the first closing one in its order wins. A success of any attempt closes an open task. What comes later is kept as superseded.

Records of different topics may be seen in any order (an outcome before its task), and any record may be seen twice: the fold
ends in the same state (tests/unit/test_lifecycle.py holds it to that).
"""

from __future__ import annotations

import hashlib
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
    STATUS_NAMES,
    TIMEOUT,
    Call,
    Ended,
    StoredRetryPolicy,
    TaskRecord,
)


class State(IntEnum):
    WAITING = 0  # accepted; runs when its endpoint has room, not before due_us
    SUCCEEDED = 1  # an attempt returned a value
    FAILED = 2  # the function raised, and its policy has no retry left
    LOST = 3  # its worker or endpoint died
    TIMED_OUT = 4  # it ran over its timeout
    CANCELLED = 5  # somebody cancelled it
    EXPIRED = 6  # it did not start in time
    REFUSED = 7  # the endpoint would not run it

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


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """An attempt that ended, and whether that came too late to count."""

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
    id: bytes
    known: bool = False  # the task's own record was seen (an outcome may come first)
    call: Call | None = None
    args: bytes = b""
    accepted_us: int = 0
    event: tuple[str, str] | None = None
    retry_of: bytes = b""
    mark_us: int = 0
    state: State = State.WAITING
    attempt: int = 1  # open: the attempt to run or running; closed: the one that closed it
    due_us: int = 0  # open: not to be started before
    attempts: tuple[Attempt, ...] = ()  # ended ones, in the order of their records
    running: tuple[int, int] = (0, 0)  # (attempt, started_us) of the newest start reported; a hint, may be missing
    cancel_us: int = 0  # when a cancel was asked for; 0: never
    cancel_by: str = ""

    @property
    def closing(self) -> Attempt | None:
        """The attempt that closed the task."""
        if not self.state.closed:
            return None
        return next(a for a in self.attempts if a.n == self.attempt and not a.superseded)


RETRYABLE = frozenset(
    (ERROR, LOST, TIMEOUT)
)  # whatever a policy says: the others are somebody's decision, or a success


def retry_due(call: Call, task_id: bytes, attempt: int, status: int, ended_us: int) -> int | None:
    """When the attempt after this one is due (unix µs); None: this end closes the task."""
    policy = call.retry
    if policy is None or status not in RETRYABLE or attempt > policy.max or STATUS_NAMES[status] not in policy.on:
        return None
    return ended_us + delay_us(policy, task_id, attempt)


def delay_us(policy: StoredRetryPolicy, task_id: bytes, attempt: int) -> int:
    """The pause after the given attempt: base·2^(n−1) up to the cap, then between half and all of it ("equal jitter"),
    by a hash of task and attempt, so that every server computes the same."""
    grown = policy.base_ms << min(attempt - 1, 40) if policy.backoff == "exponential" else policy.base_ms
    full = min(grown, policy.cap_ms) * 1000
    digest = hashlib.blake2b(task_id + attempt.to_bytes(4, "big"), digest_size=4).digest()
    return full // 2 + full // 2 * int.from_bytes(digest, "big") // 0xFFFFFFFF


def accept(state: TaskState | None, call: Call, task: TaskRecord, accepted_us: int) -> TaskState:
    """The task's own record. Its owner may append it again (same id): that changes nothing."""
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
    """An attempt ended."""
    state = state or TaskState(ended.id)
    if any(a.same_as(ended) for a in state.attempts):
        return state
    if state.call is None:  # the outcome stands alone until its task is seen
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
        return msgspec.structs.replace(state, attempts=(*state.attempts, record))
    if already:  # a success of an attempt that had been given up: it takes that end's place
        kept = tuple(msgspec.structs.replace(a, superseded=True) if a.n == ended.attempt else a for a in state.attempts)
        state = msgspec.structs.replace(state, attempts=kept)
    due = retry_due(call, ended.id, ended.attempt, ended.status, ended.ended_us)
    if due is not None:
        return msgspec.structs.replace(state, attempts=(*state.attempts, record), attempt=ended.attempt + 1, due_us=due)
    return msgspec.structs.replace(
        state, attempts=(*state.attempts, record), attempt=ended.attempt, due_us=0, state=CLOSED_AS[ended.status]
    )


def cancel(state: TaskState | None, task_id: bytes, at_us: int, by: str) -> TaskState:
    """Somebody asked for a cancel: a wish. The owner ends the attempt; the first closing record decides."""
    state = state or TaskState(task_id)
    if state.cancel_us:
        return state
    return msgspec.structs.replace(state, cancel_us=at_us or 1, cancel_by=by)  # 0 would say that nobody asked


def started(state: TaskState | None, task_id: bytes, attempt: int, started_us: int) -> TaskState:
    """A report that an attempt runs."""
    state = state or TaskState(task_id)
    return msgspec.structs.replace(state, running=max(state.running, (attempt, started_us)))


def phase(state: State, attempt: int, running_attempt: int, cancel_us: int) -> str:
    """The word people see: waiting, retrying, running, cancelling, or how it closed."""
    if state.closed:
        return state.name.lower()
    if cancel_us:
        return "cancelling"
    if running_attempt == attempt:
        return "running"
    return "retrying" if attempt > 1 else "waiting"


build_decoders(globals())
