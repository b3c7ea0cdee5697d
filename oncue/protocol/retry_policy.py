"""Retry policy: which ends of attempts are retried, when, and why not.

    end ──► a word of `on`, none of `never`? ──► retries left? ──► within max_age? ──► due time

A word is `lost`, `error`, `timeout`, an exit code (`exit:75`), or the class of an exception, which
stands for its subclasses, too. All servers decide alike, since they decide from records alone.
"""

from __future__ import annotations

import hashlib
import re

from oncue.errors import Undecodable
from oncue.protocol.codec import decode
from oncue.protocol.records import ERROR, LOST, STATUS_NAMES, TIMEOUT, Ended, Failure, StoredRetryPolicy
from oncue.quantities import duration_text

# The other statuses are a success or a decision (cancel, expiry, refusal): no policy retries them.
RETRYABLE = frozenset((ERROR, LOST, TIMEOUT))
#: Ends of attempts that a policy may name, besides exit codes and classes.
RETRY_WORDS = ("lost", "error", "timeout")
RETRY_WORD_CHARS = 200
#: Words of a policy as a regular expression. A class without a module begins with a capital letter.
RETRY_WORD = (
    r"lost|error|timeout|exit:(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
    r"|(?!(?:Lost|LOST|Error|ERROR|Timeout|TIMEOUT)$)_*[A-Z][A-Za-z0-9_]*"
    r"|(?:[A-Za-z_][A-Za-z0-9_]*\.)+[A-Za-z_][A-Za-z0-9_]*"
)
_WORD = re.compile(RETRY_WORD)
_NO_FAILURE = Failure("", "")


def is_retry_word(word: str) -> bool:
    """Return True if a retry policy may name this end of an attempt."""
    return len(word) <= RETRY_WORD_CHARS and _WORD.fullmatch(word) is not None


def retry_due(policy: StoredRetryPolicy | None, ended: Ended, accepted_us: int) -> int | None:
    """Decide if an ended attempt is retried.

    Return the time of the next attempt (unix µs), or None if the ended attempt closes the task.
    `accepted_us`: when the task was accepted, by the record of the end; 0: not known.
    """
    if policy is None or ended.status not in RETRYABLE or why_not_retried(policy, ended, accepted_us):
        return None
    return ended.ended_us + delay_us(policy, ended.id, ended.attempt)


def why_not_retried(policy: StoredRetryPolicy, ended: Ended, accepted_us: int) -> str:
    """Return why the policy does not retry this error, loss or timeout; "" if it does."""
    failure = _failure(policy, ended)
    if word := _named(policy.never, ended, failure):
        return f"{word} is in never"
    if not _named(policy.on, ended, failure):
        return f"{_shown(ended, failure)} is not in on ({', '.join(policy.on) or 'empty'})"
    if ended.attempt > policy.max:
        return f"all {policy.max} retries are used" if policy.max != 1 else "its one retry is used"
    if policy.max_age_ms and accepted_us:
        next_us = ended.ended_us + delay_us(policy, ended.id, ended.attempt)
        if next_us > accepted_us + policy.max_age_ms * 1000:
            return f"the next attempt would start later than max_age ({duration_text(policy.max_age_ms)}) allows"
    return ""


def why_retried(policy: StoredRetryPolicy, ended: Ended) -> str:
    """Return which word of the policy retries this end; "" if its failure is not kept."""
    word = _named(policy.on, ended, _failure(policy, ended))
    return f"{word} is in on" if word else ""


def delay_us(policy: StoredRetryPolicy, task_id: bytes, attempt: int) -> int:
    """Return the pause after an attempt, in µs.

    base·2^(n−1) up to the cap, of which between half and all is taken ("equal jitter"). The jitter
    is a hash of task and attempt, so that all servers compute the same pause.
    """
    grown = policy.base_ms << min(attempt - 1, 40) if policy.backoff == "exponential" else policy.base_ms
    full = min(grown, policy.cap_ms) * 1000
    digest = hashlib.blake2b(task_id + attempt.to_bytes(4, "big"), digest_size=4).digest()
    return full // 2 + full // 2 * int.from_bytes(digest, "big") // 0xFFFFFFFF


def _failure(policy: StoredRetryPolicy, ended: Ended) -> Failure:
    """Return the failure of an error, if the policy names an exit code or a class."""
    if ended.status != ERROR or all(word in RETRY_WORDS for word in (*policy.on, *policy.never)):
        return _NO_FAILURE
    try:
        return decode(Failure, ended.value)
    except Undecodable:
        return _NO_FAILURE


def _named(words: tuple[str, ...], ended: Ended, failure: Failure) -> str:
    """Return the first word that stands for this end; "" if there is none."""
    status = STATUS_NAMES[ended.status]
    exited = f"exit:{failure.exit_code}"
    classes = failure.classes or ((failure.type,) if failure.type else ())
    for word in words:
        if word in (status, exited) or any(_is_class(name, word) for name in classes):
            return word
    return ""


def _is_class(name: str, word: str) -> bool:
    """Return True if a policy's word names this class.

    `mypkg.Retriable` also names `mypkg.errors.Retriable`: users write the name that they import.
    """
    package, _, own = word.removeprefix("builtins.").rpartition(".")
    if not package:
        return name == own or name.endswith(f".{own}")
    return name == word or (name.startswith(f"{package}.") and name.endswith(f".{own}"))


def _shown(ended: Ended, failure: Failure) -> str:
    if failure.exit_code >= 0:
        return f"exit:{failure.exit_code}"
    return failure.type or STATUS_NAMES[ended.status]
