"""Checks of submitted calls, and their split into records of the log."""

from __future__ import annotations

from collections.abc import Sequence

from oncue import ids as task_ids
from oncue.errors import Invalid, TooLarge
from oncue.protocol.api import RetryPolicy
from oncue.protocol.priority import PRIORITY_WORDS, priority_number
from oncue.protocol.records import INLINE_BYTES, MAX_RETRIES, StoredRetryPolicy, TaskRecord
from oncue.protocol.retry_policy import is_retry_word

RECORD_TASKS = 1_024  # tasks in one record of the log
ENDS = "on and never: of lost, error, timeout, exit:1 to exit:255, and classes such as ValueError or mypkg.Retriable"
RECORD_BYTES = 1 << 20  # of arguments, in one record of the log


def parse_batch_key(text: str) -> bytes:
    """Return the bytes of a batch key; a new key for "". Raises Invalid."""
    if not text:
        return task_ids.new_uuid7()
    try:
        return task_ids.parse(text)
    except ValueError as e:
        raise Invalid(f"key: {e}", remedy="a batch key is a UUIDv7, as 32 hex digits") from None


def stored_retry(policy: RetryPolicy | None) -> StoredRetryPolicy | None:
    """Return the policy as a call stores it.

    None if it allows no retry. Raises Invalid.
    """
    if policy is None:
        return None
    if bad := [word for word in (*policy.on, *policy.never) if not is_retry_word(word)]:
        raise Invalid(f"retry: there is no end {bad[0]!r} to retry: not a policy that oncue knows", remedy=ENDS)
    numbers = (policy.max, policy.base_ms, policy.cap_ms, policy.max_age_ms or 0)
    if policy.backoff not in ("exponential", "constant") or min(numbers) < 0:
        raise Invalid(
            "retry: not a policy that oncue knows", remedy="backoff: exponential or constant; no negative number"
        )
    if policy.max > MAX_RETRIES:
        raise Invalid(
            f"retry: max is {policy.max:,}; at most {MAX_RETRIES:,} retries",
            remedy="let the function itself wait for what it needs, or a rule call it again",
        )
    return policy.stored() if policy.max else None


def stored_priority(word: str) -> int:
    """Return the priority as a call stores it. Raises Invalid."""
    try:
        return priority_number(word)
    except KeyError:
        raise Invalid(f"there is no priority {word!r}", remedy=f"there are {', '.join(PRIORITY_WORDS)}") from None


def check_payloads(payloads: Sequence[bytes]) -> None:
    """Raise TooLarge if the arguments of a call are too large for a record."""
    if max(map(len, payloads)) > INLINE_BYTES + 1:
        i = max(range(len(payloads)), key=lambda i: len(payloads[i]))
        raise TooLarge(
            f"the arguments of call {i} have {len(payloads[i]):,} bytes; {INLINE_BYTES:,} travel inline",
            remedy="upload them first (PUT /v1/blobs/{sha256}) and send a reference; oncue.Client does that by itself",
            limit_bytes=INLINE_BYTES,
        )


def split_records(tasks: list[TaskRecord]) -> list[list[TaskRecord]]:
    """Split tasks into records of up to RECORD_TASKS tasks and RECORD_BYTES bytes."""
    total = sum(len(t.args) for t in tasks)
    if len(tasks) <= RECORD_TASKS and total <= RECORD_BYTES:
        return [tasks]
    parts: list[list[TaskRecord]] = [[]]
    size = 0
    for t in tasks:
        if parts[-1] and (len(parts[-1]) >= RECORD_TASKS or size + len(t.args) > RECORD_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(t)
        size += len(t.args)
    return parts
