"""Turn an outcome into a value or an exception.

A failure is data (records.Failure): none of it is executed here. A pickled value is loaded only if
its endpoint is trusted, because unpickling runs code.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import msgspec

from oncue.errors import (
    OncueError,
    OtherPython,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskLost,
    TaskRefused,
    TaskTimedOut,
    UnreadableResult,
    UntrustedResult,
)
from oncue.protocol import payload
from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import CANCELLED, ERROR, EXPIRED, LOST, OK, REFUSED, TIMEOUT, Ended, Failure

_KINDS: dict[int, tuple[type[TaskError], str, str]] = {
    LOST: (TaskLost, "was lost", "run it again, or give it retries: with_options(retry=3)"),
    TIMEOUT: (TaskTimedOut, "ran over its timeout", "give it more time: with_options(timeout=…)"),
    CANCELLED: (TaskCancelled, "was cancelled", ""),
    EXPIRED: (TaskExpired, "did not start in time", "look at its endpoint with `oncue endpoints list`"),
    REFUSED: (TaskRefused, "was refused by its endpoint", "ask the endpoint's owner to allow this function"),
}
Fetch = Callable[[payload.Ref], bytes]


def value(ended: Ended, task_id: bytes, name: str, endpoint: str, fetch: Fetch, trusted: Callable[[], bool]) -> Any:
    """Return the task's value.

    `trusted` is called only for a pickle. Raises TaskError for a task that did not succeed;
    UntrustedResult and UnreadableResult (with the bytes in `.raw`); BlobMissing.
    """
    if ended.status != OK:
        raise error(ended, task_id, name)
    content = ended.value
    ref = payload.ref_of(content)
    if ref is not None:
        content = fetch(ref)
    if content[:1] == payload.PICKLE and not trusted():
        untrusted = UntrustedResult(
            f"the result of task {task_id.hex()} is a pickle from the endpoint {endpoint!r}, which you neither own nor trust",
            remedy=f"if you trust its owner to run code as you: Client(trust=[{endpoint!r}]); the bytes are in .raw",
        )
        untrusted.raw, untrusted.task_id = content, task_id.hex()
        raise untrusted
    try:
        return payload.unpack(content)
    except (Exception, SystemExit) as e:  # an import may do anything
        unreadable = _unreadable(e, task_id)
        unreadable.raw, unreadable.task_id = content, task_id.hex()
        raise unreadable from e


def _unreadable(why: BaseException, task_id: bytes) -> UnreadableResult:
    what = f"the result of task {task_id.hex()} cannot be read here: "
    if isinstance(why, OtherPython):
        return UnreadableResult(what + why.message, remedy=f"{why.remedy}; or return plain data: numbers, text, lists")
    if isinstance(why, OncueError):
        return UnreadableResult(what + why.message, remedy=why.remedy)
    if isinstance(why, ModuleNotFoundError) and why.name:
        remedy = f"it needs the module {why.name}: install it here, or read the result in a program that finds it"
    else:
        remedy = (
            "read it in the program that defines its class, with the packages that the worker has; or return plain data"
        )
    return UnreadableResult(f"{what}{type(why).__name__}: {why}", remedy=remedy)


def error(ended: Ended, task_id: bytes, name: str) -> TaskError:
    """Return the exception for an attempt that did not succeed.

    A builtin exception of the function is rebuilt as its `__cause__`.
    """
    try:
        failure = msgspec.msgpack.decode(ended.value, type=Failure)
    except DECODE_ERRORS:
        failure = Failure("", "")
    what = f"{name or 'the function'} (task {task_id.hex()})"
    found: TaskError
    if ended.status == ERROR or ended.status not in _KINDS:
        shown = f"{failure.type}: {failure.message}" if failure.message else failure.type
        text = f"{what} raised {shown}" + (f"\n\n{failure.traceback.rstrip()}\n" if failure.traceback else "")
        found = TaskFailed(text, remedy=failure.remedy, type_name=failure.type, traceback=failure.traceback)
        found.__cause__ = rebuilt(failure)
    else:
        kind, words, remedy = _KINDS[ended.status]
        found = kind(
            f"{what} {words}" + (f": {failure.message}" if failure.message else ""), remedy=failure.remedy or remedy
        )
    found.task_id = task_id.hex()
    return found


def rebuilt(failure: Failure) -> BaseException | None:
    """Return the builtin exception of that name, or None for other classes."""
    kind = getattr(builtins, failure.type.removeprefix("builtins."), None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return None
    try:
        return kind(failure.message)
    except Exception:  # it needs more arguments, as UnicodeDecodeError does
        return None
