"""Turn an outcome into a value or an exception.

A failure is data (records.Failure). A pickle, of a value, of a class of exceptions or in an
exception, is loaded only if its endpoint is trusted, because unpickling runs code.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable
from typing import Any

import msgspec

from oncue.errors import (
    OncueError,
    OtherPython,
    ShellFailed,
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
from oncue.protocol.exceptions import from_data
from oncue.protocol.records import CANCELLED, ERROR, EXPIRED, LOST, OK, REFUSED, TIMEOUT, Ended, Failure
from oncue.protocol.run_options import TaskFile

_KINDS: dict[int, tuple[type[TaskError], str, str]] = {
    LOST: (TaskLost, "was lost", "run it again, or give it retries: with_options(retry=3)"),
    TIMEOUT: (TaskTimedOut, "ran over its timeout", "give it more time: with_options(timeout=…)"),
    CANCELLED: (TaskCancelled, "was cancelled", ""),
    EXPIRED: (TaskExpired, "did not start in time", "look at its endpoint with `oncue endpoints list`"),
    REFUSED: (TaskRefused, "was refused by its endpoint", "ask the endpoint's owner to allow this function"),
}
Fetch = Callable[[payload.Ref], bytes]


def value(ended: Ended, task_id: bytes, endpoint: str, fetch: Fetch, trusted: Callable[[], bool]) -> Any:
    """Return the value of a task that succeeded.

    `trusted` is called only for a pickle. Raises
    UntrustedResult and UnreadableResult (with the bytes in `.raw`); BlobMissing.
    """
    content = ended.value
    if content[:1] == payload.FILES:
        content = payload.with_files(content).value
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


def files(ended: Ended) -> tuple[TaskFile, ...]:
    """Return the files that an attempt has left. Raises Undecodable."""
    return payload.files_of(ended.value) if ended.status == OK else _failure(ended).files


def _failure(ended: Ended) -> Failure:
    try:
        return msgspec.msgpack.decode(ended.value, type=Failure)
    except DECODE_ERRORS:
        return Failure("", "")


def error(ended: Ended, task_id: bytes, name: str, trusted: Callable[[], bool]) -> BaseException:
    """Return the exception for an attempt that did not succeed.

    If the function raised one whose class is to be had here, it is that, and its `__cause__` is the
    TaskFailed with the endpoint's traceback. Else it is a TaskError. `trusted`: as for `value`.
    """
    failure = _failure(ended)
    kept = f"\n  its sandbox is kept on the endpoint: {failure.folder}" if failure.folder else ""
    what = f"{name or 'the function'} (task {task_id.hex()})"
    found: TaskError
    if ended.status != ERROR and ended.status in _KINDS:
        kind, words, remedy = _KINDS[ended.status]
        found = kind(
            f"{what} {words}" + (f": {failure.message}" if failure.message else "") + kept,
            remedy=failure.remedy or remedy,
        )
        found.task_id = task_id.hex()
        return found
    shown = f"{failure.type}: {failure.message}" if failure.message else failure.type
    if failure.type == "oncue.ShellFailed":
        return _shell_failed(failure, what, kept, task_id)
    text = f"{what} raised {shown}" + (f"\n\n{failure.traceback.rstrip()}\n" if failure.traceback else "") + kept
    found = TaskFailed(text, remedy=failure.remedy, type_name=failure.type, traceback=failure.traceback)
    found.task_id = task_id.hex()
    own = from_data(failure.exception, payload.unpack, functools.partial(_surely, trusted))
    own = own or _of_former_version(failure)
    if own is None:
        return found
    own.__cause__ = found
    return own


def _shell_failed(failure: Failure, what: str, kept: str, task_id: bytes) -> ShellFailed:
    found = ShellFailed(
        f"{what}: {failure.message}{kept}", remedy=failure.remedy, type_name=failure.type, traceback=failure.traceback
    )
    found.returncode, found.stderr, found.task_id = failure.exit_code, failure.traceback, task_id.hex()
    return found


def _surely(trusted: Callable[[], bool]) -> bool:
    """Return `trusted()`, or False if the server does not answer."""
    try:
        return trusted()
    except OncueError:
        return False


def _of_former_version(failure: Failure) -> BaseException | None:
    """Return the builtin that a former version's worker named, with its message."""
    kind = getattr(builtins, failure.type, None)
    if failure.exception or not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    try:
        return kind(failure.message)
    except Exception:  # it needs more arguments, as UnicodeDecodeError does
        return None
