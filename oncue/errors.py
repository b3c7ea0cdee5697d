"""One tree of errors. Each class's docstring is the explanation that a user reads (`oncue` prints it under the
message), `code` is the stable name that scripts match, `status` the HTTP status of the API's problem response (RFC 9457),
and `remedy` says what to do next.
"""

from __future__ import annotations

from typing import Any, ClassVar


class OncueError(Exception):
    """Something went wrong in oncue."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = details  # JSON-able facts for scripts: file, line, limit_bytes ...

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.remedy, self.details))


def _rebuild(cls: type[OncueError], message: str, remedy: str, details: dict[str, Any]) -> OncueError:
    return cls(message, remedy=remedy, **details)


# ---------------------------------------------------------------- what a caller did


class Invalid(OncueError):
    """The request does not have the form that oncue takes; nothing was done."""

    code = "invalid"
    status = 422
    exit_code = 2


class RuleFileError(Invalid):
    """A rule file is not right; nothing of it was deployed. The message names file, line and column."""

    code = "rule-file"

    def __init__(
        self, message: str, *, remedy: str = "", file: str = "", line: int = 0, column: int = 0, **details: Any
    ) -> None:
        remedy = remedy or "correct that place; `oncue deploy --dry-run FILE` looks at it again and changes nothing"
        super().__init__(message, remedy=remedy, file=file, line=line, column=column, **details)
        self.file, self.line, self.column = file, line, column

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " if self.file or self.line else ""
        return where + super().__str__()


class Malformed(Invalid):
    """The request cannot be read at all: its body is not what its content type says."""

    code = "malformed"
    status = 400


class UnsupportedType(Invalid):
    """The request's content type is not one that this place takes."""

    code = "unsupported-type"
    status = 415


class MethodNotAllowed(Invalid):
    """There is something at this path, but not for this method."""

    code = "method-not-allowed"
    status = 405


class TooLarge(OncueError):
    """The request is over a size limit. Large arguments and results travel as blobs, by themselves."""

    code = "too-large"
    status = 413


class NotFound(OncueError):
    """There is no such thing, or you may not see it."""

    code = "not-found"
    status = 404
    exit_code = 4


class Conflict(OncueError):
    """The request does not fit what is there now."""

    code = "conflict"
    status = 409


class Unauthorized(OncueError):
    """The request carried no token, or one that is unknown, expired or revoked."""

    code = "unauthorized"
    status = 401
    exit_code = 5


class Forbidden(OncueError):
    """The token is good, but it does not carry the scope that this needs, or the thing belongs to someone else."""

    code = "forbidden"
    status = 403
    exit_code = 5


class RateLimited(OncueError):
    """Too many requests from one token in a short time."""

    code = "rate-limited"
    status = 429


class DiskFull(OncueError):
    """The disk that holds the log is full or nearly so; nothing new is accepted, results still are."""

    code = "disk-full"
    status = 507


# ---------------------------------------------------------------- what a part of oncue met


class Unreachable(OncueError):
    """The server did not answer."""

    code = "unreachable"
    status = 503
    exit_code = 3


class NotReady(OncueError):
    """The server is starting or stopping."""

    code = "not-ready"
    status = 503


class TriggerFailed(OncueError):
    """A trigger does not run. Whoever deployed it finds the reason in `oncue triggers list`; a sender may try again."""

    code = "trigger-failed"
    status = 503


class MissingExtra(OncueError):
    """A part of oncue was asked for whose libraries are not installed."""

    code = "missing-extra"


class LogError(OncueError):
    """The durable log could not do what was asked."""

    code = "log"


class LogLocked(LogError):
    """Another server has this log open. One embedded log serves one server; several servers share Kafka."""

    code = "log-locked"


class NotOwner(LogError):
    """Another server has taken over the partition that this one worked on. It does again what was not committed here."""

    code = "not-owner"


class NetworkMount(LogError):
    """The data folder is on a network mount, where SQLite's write-ahead log cannot work."""

    code = "network-mount"


class Undecodable(OncueError):
    """A record or frame is not in a form that this version can read."""

    code = "undecodable"


class OtherPython(Undecodable):
    """A value or function came as bytecode of another minor version of Python, which would crash this one."""

    code = "other-python"


class Refused(OncueError):
    """The server refused an endpoint's agent: unknown key, revoked, or a version it cannot speak with."""

    code = "refused"


class BlobMissing(OncueError):
    """A large payload is not in its store any more, or its content does not have the hash it should have."""

    code = "blob-missing"
    status = 410


# ---------------------------------------------------------------- functions


class FunctionError(OncueError):
    """A function could not be packed, or could not be loaded where it should run."""

    code = "function"


class CannotPack(FunctionError, Invalid):
    """This callable cannot be shipped."""

    code = "cannot-pack"


class CannotImport(CannotPack):
    """The file of this function cannot be imported here."""


class CannotLoad(FunctionError):
    """The worker could not load the function: a module is missing there, or the Python versions differ."""

    code = "cannot-load"


# ---------------------------------------------------------------- how a task ended, when not well


class TaskError(OncueError):
    """The task ended without a result."""

    code = "task"

    task_id: str = ""


class TaskFailed(TaskError):
    """The function raised an exception. `type_name`, `message` and `traceback` are the remote exception's;
    where its type is a builtin, it is this error's `__cause__` as well."""

    code = "task-failed"

    def __init__(
        self, message: str, *, remedy: str = "", type_name: str = "", traceback: str = "", **details: Any
    ) -> None:
        super().__init__(message, remedy=remedy, type_name=type_name, traceback=traceback, **details)
        self.type_name, self.traceback = type_name, traceback


class TaskLost(TaskError):
    """The worker that ran the task died, or its endpoint went away, before there was a result."""

    code = "task-lost"


class TaskTimedOut(TaskError):
    """The function ran longer than its timeout and was stopped."""

    code = "task-timed-out"


class TaskCancelled(TaskError):
    """The task was cancelled before it had a result."""

    code = "task-cancelled"


class TaskExpired(TaskError):
    """The task did not start before its expiry."""

    code = "task-expired"


class TaskRefused(TaskError):
    """The endpoint would not run the task: it does not serve this person or this function."""

    code = "task-refused"


class UnreadableResult(TaskError):
    """The function returned, but its result cannot be made again here: a module, class or Python version is missing, or its
    class does not unpickle. The bytes are in `.raw`, what went wrong is its `__cause__`."""

    code = "unreadable-result"
    raw: bytes = b""


class UntrustedResult(TaskError):
    """The result is a pickle from an endpoint that you neither own nor trust; unpickling runs code. It is in `.raw`."""

    code = "untrusted-result"
    raw: bytes = b""
