"""The fold: whatever the order between topics and whatever comes twice, the same state and one outcome."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue import task_lifecycle
from oncue.protocol.codec import encode
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
    Failure,
    ResultFrame,
    StoredRetryPolicy,
)
from oncue.protocol.retry_policy import is_retry_word
from oncue.task_lifecycle import CLOSED_AS, State, TaskState
from tests.unit.task_histories import ACCEPTED_US, PLAIN, RETRIED, fold, histories, interleaved, task_of

ID = b"\x01" * 16


def ended(attempt: int, status: int, at: int = 5_000, value: bytes = b"") -> Ended:
    return Ended(ID, attempt, status, at - 10, at, value)


def after(call: Call, *ends: Ended) -> TaskState:
    state = task_lifecycle.accept(None, call, task_of(ID), ACCEPTED_US)
    for e in ends:
        state = task_lifecycle.end(state, call, ACCEPTED_US, e)
    return state


@given(st.data())
def test_topics_commute(data: st.DataObject) -> None:
    history = data.draw(histories())
    one, other = data.draw(interleaved(history)), data.draw(interleaved(history))
    assert fold(one) == fold(other)


@given(st.data())
def test_a_double_changes_nothing(data: st.DataObject) -> None:
    """Any record again, at any time after it was seen."""
    entries = data.draw(histories().flatmap(interleaved))
    if not entries:
        return
    first = data.draw(st.integers(0, len(entries) - 1))
    again = data.draw(st.integers(first + 1, len(entries)))
    doubled = [*entries[:again], entries[first], *entries[again:]]
    assert fold(doubled) == fold(entries)


@given(st.data())
def test_one_outcome(data: st.DataObject) -> None:
    """A closed task has exactly one closing attempt, and no later record changes it."""
    entries = data.draw(histories().flatmap(interleaved))
    closed: dict[bytes, Any] = {}
    states: dict[bytes, TaskState] = {}
    for entry in entries:
        states = fold([entry], states)
        for task_id, state in states.items():
            if task_id in closed:
                assert (state.state, state.closing) == closed[task_id]
            elif state.state.closed:
                closed[task_id] = (state.state, state.closing)
                assert state.closing is not None
                assert state.state is CLOSED_AS[state.closing.status]
                assert state.due_us == 0
            else:
                assert state.closing is None
    for state in states.values():
        for n in {a.n for a in state.attempts}:
            assert sum(a.n == n and not a.superseded for a in state.attempts) <= 1


@given(st.data())
def test_a_success_closes_an_open_task(data: st.DataObject) -> None:
    entries = data.draw(histories().flatmap(interleaved))
    good = {e.id for _, m in entries if isinstance(m, ResultFrame) for e in m.ended if e.status == OK}
    states = fold(entries)
    assert all(states[task_id].state.closed for task_id in good)


@pytest.mark.parametrize("status", range(len(STATUS_NAMES)))
def test_without_a_policy_every_end_closes(status: int) -> None:
    state = after(PLAIN, ended(1, status, value=b"x"))
    assert state.state is CLOSED_AS[status]
    assert state.closing is not None
    assert (state.closing.status, state.closing.value) == (status, b"x")


@pytest.mark.parametrize("status", [ERROR, LOST, TIMEOUT])
def test_retries_until_the_policy_is_spent(status: int) -> None:
    first = after(RETRIED, ended(1, status))
    assert (first.state, first.attempt) == (State.WAITING, 2)
    assert 5_000 + 1_000_000 <= first.due_us <= 5_000 + 2_000_000
    third = after(RETRIED, ended(1, status), ended(2, status, 6_000), ended(3, status, 7_000))
    assert (third.state, third.attempt, third.due_us) == (CLOSED_AS[status], 3, 0)
    assert [a.superseded for a in third.attempts] == [False] * 3


@pytest.mark.parametrize("status", [OK, CANCELLED, EXPIRED, REFUSED])
def test_no_policy_can_retry_a_decision_or_a_success(status: int) -> None:
    call = msgspec.structs.replace(PLAIN, retry=StoredRetryPolicy(5, on=STATUS_NAMES))
    assert after(call, ended(1, status)).state is CLOSED_AS[status]


def test_what_is_not_in_the_policy_closes() -> None:
    call = msgspec.structs.replace(PLAIN, retry=StoredRetryPolicy(5, on=("lost",)))
    assert after(call, ended(1, ERROR)).state is State.FAILED
    assert after(call, ended(1, LOST)).state is State.WAITING


def test_an_exit_code_that_the_policy_names_is_retried_and_no_other() -> None:
    call = msgspec.structs.replace(PLAIN, retry=StoredRetryPolicy(5, on=("exit:75",)))
    failed = {code: encode(Failure("x", "y", exit_code=code)) for code in (-1, 7, 75)}

    assert after(call, ended(1, ERROR, value=failed[75])).state is State.WAITING
    assert after(call, ended(1, ERROR, value=failed[7])).state is State.FAILED
    assert after(call, ended(1, ERROR, value=failed[-1])).state is State.FAILED
    assert after(call, ended(1, ERROR, value=b"\xc1 no failure")).state is State.FAILED
    assert after(call, ended(1, LOST, value=failed[75])).state is State.LOST
    both = msgspec.structs.replace(PLAIN, retry=StoredRetryPolicy(5, on=("exit:75", "lost")))
    assert after(both, ended(1, LOST)).state is State.WAITING


@pytest.mark.parametrize("word", ["exit:0", "exit:256", "exit:", "exit:75 ", "exit:075", "exit", "ok", ""])
def test_a_policy_names_ends_that_there_are(word: str) -> None:
    assert not is_retry_word(word)
    assert all(map(is_retry_word, ("lost", "error", "timeout", "exit:1", "exit:255")))


def test_a_success_after_it_was_given_up_takes_that_ends_place() -> None:
    state = after(RETRIED, ended(1, LOST), ended(1, OK, 6_000, b"late"))
    assert (state.state, state.attempt) == (State.SUCCEEDED, 1)
    assert [(a.status, a.superseded) for a in state.attempts] == [(LOST, True), (OK, False)]
    assert state.closing is not None
    assert state.closing.value == b"late"


def test_a_success_after_the_task_was_closed_is_superseded() -> None:
    state = after(PLAIN, ended(1, LOST), ended(1, OK, 6_000))
    assert state.state is State.LOST
    assert [(a.status, a.superseded) for a in state.attempts] == [(LOST, False), (OK, True)]


def test_an_end_of_an_older_attempt_is_superseded() -> None:
    state = after(RETRIED, ended(1, LOST), ended(1, ERROR, 6_000))
    assert (state.state, state.attempt) == (State.WAITING, 2)
    assert [a.superseded for a in state.attempts] == [False, True]


def test_a_task_with_many_failures_keeps_the_texts_of_the_first_and_the_last_ones() -> None:
    call = msgspec.structs.replace(PLAIN, retry=StoredRetryPolicy(500))
    state = after(call, *(ended(n, ERROR, 1_000 * n, b"x" * 100_000) for n in range(1, 502)))

    assert (state.state, state.attempt, len(state.attempts)) == (State.FAILED, 501, 501)
    full = [a.n for a in state.attempts if a.value]
    assert full == [1, *range(482, 502)]
    assert state.closing is not None
    assert state.closing.value


def test_ends_that_came_too_late_are_bounded_and_the_closing_one_stays_whole() -> None:
    late = [ended(1, LOST, 10_000 + n, b"x" * 100_000) for n in range(1_000)]
    state = after(PLAIN, ended(1, OK, value=b"good"), *late)

    assert len(state.attempts) == 1 + task_lifecycle.MAX_SUPERSEDED
    assert state.closing is not None
    assert state.closing.value == b"good"
    assert sum(len(a.value) for a in state.attempts) < 25 * 100_000


def test_a_cancel_is_a_wish() -> None:
    state = task_lifecycle.cancel(after(PLAIN), ID, 7, "ann")
    assert (state.state, state.cancel_us, state.cancel_by) == (State.WAITING, 7, "ann")
    assert task_lifecycle.cancel(state, ID, 8, "bob") == state
    assert task_lifecycle.end(state, PLAIN, ACCEPTED_US, ended(1, OK)).state is State.SUCCEEDED
    assert task_lifecycle.end(state, PLAIN, ACCEPTED_US, ended(1, CANCELLED)).state is State.CANCELLED


def test_a_cancel_without_a_time_counts() -> None:
    assert task_lifecycle.cancel(None, ID, 0, "ann").cancel_us > 0


@given(st.integers(1, 100), st.sampled_from(("exponential", "constant")), st.integers(0, 10**6), st.integers(0, 10**7))
def test_delays_stay_between_half_and_all_of_the_step(attempt: int, backoff: Any, base: int, cap: int) -> None:
    step = min(base << min(attempt - 1, 40) if backoff == "exponential" else base, cap) * 1000
    delay = task_lifecycle.delay_us(StoredRetryPolicy(9, backoff, base, cap), ID, attempt)
    assert step // 2 <= delay <= step
    assert delay == task_lifecycle.delay_us(StoredRetryPolicy(9, backoff, base, cap), ID, attempt)


@pytest.mark.parametrize(
    ("given_", "word"),
    [
        ((State.WAITING, 1, 0, 0), "waiting"),
        ((State.WAITING, 2, 1, 0), "retrying"),
        ((State.WAITING, 2, 2, 0), "running"),
        ((State.WAITING, 1, 1, 5), "cancelling"),
        ((State.TIMED_OUT, 1, 1, 5), "timed_out"),
    ],
)
def test_phases(given_: tuple[State, int, int, int], word: str) -> None:
    assert task_lifecycle.phase(*given_) == word
