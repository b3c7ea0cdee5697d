"""Retry policy: words of `on` and `never`, max_age, and the reasons that are shown."""

from __future__ import annotations

import msgspec
import pytest

from oncue.client import Options, Retry
from oncue.endpoint.worker.failure import failure
from oncue.errors import Invalid
from oncue.protocol.codec import decode, encode
from oncue.protocol.exceptions import class_name
from oncue.protocol.records import ERROR, LOST, TIMEOUT, Ended, Failure, StoredRetryPolicy
from oncue.protocol.retry_policy import is_retry_word, retry_due, why_not_retried, why_retried

ACCEPTED_US = 1_000_000


class Retriable(OSError):
    pass


class Sub(Retriable):
    pass


def end_of(error: BaseException | int | str | bytes, attempt: int = 1, ended_us: int = 2_000_000) -> Ended:
    """Return the end of an attempt: with this exception as the worker reports it, exit code, class or status."""
    if error in (LOST, TIMEOUT):
        return Ended(b"i" * 16, attempt, int(error), 0, ended_us)  # type: ignore[arg-type]
    if isinstance(error, BaseException):
        value = encode(failure(error))
    else:  # of an older worker, which reports no classes
        value = error if isinstance(error, bytes) else encode(Failure(str(error), "no beam"))
    return Ended(b"i" * 16, attempt, ERROR, 0, ended_us, value)


OF = Retriable.__module__
TABLE: list[tuple[tuple[str, ...], tuple[str, ...], BaseException | int | str | bytes, str]] = [
    # on, never, end, why it is not retried
    (("error",), ("ValueError",), ValueError("x"), "ValueError is in never"),
    (("error",), ("ValueError",), UnicodeError("x"), "ValueError is in never"),
    (("error",), ("ValueError",), KeyError("x"), ""),
    (("error",), ("builtins.LookupError",), KeyError("x"), "builtins.LookupError is in never"),
    (("OSError",), (), Sub("x"), ""),
    (("Retriable",), (), Sub("x"), ""),
    ((f"{OF}.Retriable",), (), Sub("x"), ""),
    ((f"{OF.partition('.')[0]}.Retriable",), (), Sub("x"), ""),  # as a package gives it under its own name
    (("mypkg.Retriable",), (), Sub("x"), f"{OF}.Sub is not in on (mypkg.Retriable)"),
    (("riable",), (), Sub("x"), f"{OF}.Sub is not in on (riable)"),
    (("OSError",), (f"{OF}.Sub",), Sub("x"), f"{OF}.Sub is in never"),
    (("Exception",), (), Sub("x"), ""),
    (("exit:75",), (), SystemExit(75), ""),
    (("exit:75",), (), SystemExit(2), "exit:2 is not in on (exit:75)"),
    (("error",), ("exit:2",), SystemExit(2), "exit:2 is in never"),
    (("error", "lost"), ("lost",), LOST, "lost is in never"),
    (("lost",), ("ValueError",), LOST, ""),
    (("timeout",), (), TIMEOUT, ""),
    (("ValueError",), (), TIMEOUT, "timeout is not in on (ValueError)"),
    (("ValueError",), (), "ValueError", ""),
    (("lab.Retriable",), (), "lab.errors.Retriable", ""),
    (("ValueError",), (), "UnicodeError", "UnicodeError is not in on (ValueError)"),
    (("ValueError",), (), b"\xc1 no failure", "error is not in on (ValueError)"),
    ((), (), ValueError("x"), "error is not in on (empty)"),
]


@pytest.mark.parametrize(("on", "never", "end", "why"), TABLE)
def test_an_end_is_retried_if_on_names_it_and_never_does_not(
    on: tuple[str, ...], never: tuple[str, ...], end: BaseException | int | str | bytes, why: str
) -> None:
    policy, ended = StoredRetryPolicy(3, on=on, never=never), end_of(end)

    assert why_not_retried(policy, ended, ACCEPTED_US) == why
    assert (retry_due(policy, ended, ACCEPTED_US) is None) == bool(why)
    assert why or why_retried(policy, ended) == f"{on[-1] if on == ('OSError',) else on[0]} is in on"


def test_retries_end_by_number_and_by_age() -> None:
    policy = StoredRetryPolicy(2, "constant", base_ms=1_000, max_age_ms=60_000)

    def why(attempt: int, ended_us: int, accepted_us: int = ACCEPTED_US) -> str:
        return why_not_retried(policy, end_of(ValueError(), attempt, ended_us), accepted_us)

    assert why(2, 2_000_000) == ""
    assert why(3, 2_000_000) == "all 2 retries are used"
    assert why(1, ACCEPTED_US + 59_000_000) == ""
    assert why(1, ACCEPTED_US + 60_000_000) == "the next attempt would start later than max_age (1m) allows"
    assert why(1, ACCEPTED_US + 60_000_000, accepted_us=0) == ""  # not known


@pytest.mark.parametrize(
    "word", ["Lost", "ERROR", "Timeout", "value_error", "a..B", "mypkg.", ".B", "B-C", "Ä", "exit:75\n", "K" * 201]
)
def test_a_word_is_a_status_an_exit_code_or_a_class(word: str) -> None:
    assert not is_retry_word(word)
    assert all(
        map(is_retry_word, ("ValueError", "_Own", "mypkg.Retriable", "socket.timeout", "a.b.c", "sqlite3.Error"))
    )


def test_the_worker_reports_the_classes_of_an_exception_within_bounds() -> None:
    deep: type[Exception] = Exception
    for n in range(40):
        deep = type("N" * 300 + str(n), (deep,), {"__module__": "m\ud800" * 100})

    found = decode(Failure, encode(failure(Sub("x")))).classes
    bounded = decode(Failure, encode(failure(deep("x")))).classes

    assert found == (f"{OF}.Sub", f"{OF}.Retriable", "OSError", "Exception", "BaseException")
    assert len(bounded) == 16


def test_a_policy_of_a_former_version_is_read() -> None:
    former = msgspec.msgpack.encode((3, "constant", 1, 2, ("lost",)))
    failed = msgspec.msgpack.encode(("ValueError", "x", "", "", b"", -1, (), ""))

    assert decode(StoredRetryPolicy, former) == StoredRetryPolicy(3, "constant", 1, 2, ("lost",))
    assert decode(Failure, failed).classes == ()


def test_a_client_names_classes_by_themselves() -> None:
    class Local(Exception):
        pass

    policy = Options(retry=Retry(on=("lost", ValueError, Retriable), never=(Local,), max_age=90)).policy()

    assert policy is not None
    assert (policy.on, policy.never) == (["lost", "ValueError", f"{OF}.Retriable"], ["Local"])
    assert policy.stored().max_age_ms == 90_000
    assert class_name(Retriable) == f"{OF}.Retriable"
    with pytest.raises(Invalid, match="neither a text nor a class"):
        Options(retry=Retry(on=(75,))).policy()
