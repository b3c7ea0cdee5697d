"""Checks of submitted calls, and their split into records."""

from __future__ import annotations

import pytest

from oncue import ids
from oncue.dispatcher.services.submission_checks import (
    RECORD_BYTES,
    RECORD_TASKS,
    check_payloads,
    parse_batch_key,
    split_records,
    stored_retry,
)
from oncue.errors import Invalid, TooLarge
from oncue.protocol.api import RetryPolicy
from oncue.protocol.records import INLINE_BYTES, TaskRecord


def tasks(count: int, size: int) -> list[TaskRecord]:
    return [TaskRecord(n.to_bytes(16, "big"), bytes(size)) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (RECORD_TASKS, 1, [RECORD_TASKS]),
        (RECORD_TASKS + 1, 1, [RECORD_TASKS, 1]),
        (3, RECORD_BYTES // 2, [2, 1]),
        (2, RECORD_BYTES + 1, [1, 1]),
    ],
)
def test_a_record_is_limited_in_tasks_and_bytes(count: int, size: int, lengths: list[int]) -> None:
    submitted = tasks(count, size)

    parts = split_records(submitted)

    assert [len(part) for part in parts] == lengths
    assert [t for part in parts for t in part] == submitted


def test_arguments_beyond_the_inline_limit_are_refused() -> None:
    check_payloads([bytes(INLINE_BYTES + 1)])  # the first byte is the format
    with pytest.raises(TooLarge, match="arguments of call 1 "):
        check_payloads([b"", bytes(INLINE_BYTES + 2)])


def test_a_batch_key_is_a_uuid() -> None:
    key = ids.new_uuid7()
    assert parse_batch_key(key.hex()) == key
    assert len(parse_batch_key("")) == 16
    with pytest.raises(Invalid, match="key: "):
        parse_batch_key("not a key")


def test_a_policy_without_retries_is_not_stored() -> None:
    assert stored_retry(None) is None
    assert stored_retry(RetryPolicy(max=0)) is None
    assert stored_retry(RetryPolicy(max=2)) == RetryPolicy(max=2).stored()


@pytest.mark.parametrize(
    "policy", [RetryPolicy(max=-1), RetryPolicy(max=1, on=["sunday"]), RetryPolicy(max=1, backoff="wild")]
)
def test_an_unknown_policy_is_refused(policy: RetryPolicy) -> None:
    with pytest.raises(Invalid, match="not a policy"):
        stored_retry(policy)


def test_a_policy_has_at_most_1000_retries() -> None:
    stored = stored_retry(RetryPolicy(max=1_000))

    assert stored is not None
    assert stored.max == 1_000
    with pytest.raises(Invalid, match="at most 1,000 retries"):
        stored_retry(RetryPolicy(max=1_001))
