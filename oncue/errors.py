"""All errors of oncue, in one tree.

The docstring of a class explains the error to users: the command line prints it under the message.
`code` is a stable name for scripts, `status` the HTTP status of the API's problem response
(RFC 9457), `remedy` the user's next step.
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


# ---------------------------------------------------------------- errors of the caller


class Invalid(OncueError):
    """The request is not valid; nothing was done."""

    code = "invalid"
    status = 422
    exit_code = 2


class FileError(Invalid):
    """A file has an error. The message names file, line and column."""

    code = "file"
    next_step: ClassVar[str] = "correct that line"

    def __init__(
        self, message: str, *, remedy: str = "", file: str = "", line: int = 0, column: int = 0, **details: Any
    ) -> None:
        remedy = remedy or self.next_step
        super().__init__(message, remedy=remedy, file=file, line=line, column=column, **details)
        self.file, self.line, self.column = file, line, column

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " if self.file or self.line else ""
        return where + super().__str__()


class RuleFileError(FileError):
    """A rule file has an error; nothing was deployed.

    The message names file, line and column.
    """

    code = "rule-file"
    next_step = "correct that line; `oncue deploy --dry-run FILE` checks it again and deploys nothing"


class EndpointFileError(FileError):
    """An `endpoint.yaml` has an error; the agent does not start with it.

    The message names file, line and column.
    """

    code = "endpoint-file"
    next_step = "correct that line; `oncue endpoint configure NAME --check` checks the file again"


class Malformed(Invalid):
    """The request's body cannot be read as its content type."""

    code = "malformed"
    status = 400


class UnsupportedType(Invalid):
    """The request's content type is not supported at this path."""

    code = "unsupported-type"
    status = 415


class MethodNotAllowed(Invalid):
    """The path exists, but it does not support this method."""

    code = "method-not-allowed"
    status = 405


class TooLarge(OncueError):
    """The request exceeds a size limit.

    Large arguments and results are sent as blobs automatically.
    """

    code = "too-large"
    status = 413


class NotFound(OncueError):
    """The object does not exist, or you may not see it."""

    code = "not-found"
    status = 404
    exit_code = 4


class Conflict(OncueError):
    """The request conflicts with the current state."""

    code = "conflict"
    status = 409


class Unauthorized(OncueError):
    """The request has no token, or its token is unknown, expired or revoked."""

    code = "unauthorized"
    status = 401
    exit_code = 5


class Forbidden(OncueError):
    """The token lacks the scope for this, or the object belongs to another person."""

    code = "forbidden"
    status = 403
    exit_code = 5


class RequestTimeout(OncueError):
    """The request did not arrive in time: its sender stopped, or is too slow."""

    code = "request-timeout"
    status = 408


class RateLimited(OncueError):
    """One token or address has sent too many requests in a short time."""

    code = "rate-limited"
    status = 429


class DiskFull(OncueError):
    """The log's disk is almost full: results are accepted, tasks and events not."""

    code = "disk-full"
    status = 507


class ClientClosed(Invalid, RuntimeError):
    """The client is closed; it submits nothing more.

    It is a RuntimeError too, as concurrent.futures raises one after a shutdown.
    """

    code = "client-closed"


# ---------------------------------------------------------------- errors of the system


class Unreachable(OncueError):
    """The server did not answer."""

    code = "unreachable"
    status = 503
    exit_code = 3


class NotReady(OncueError):
    """The server is starting or stopping, or has to be started again."""

    code = "not-ready"
    status = 503


class TriggerFailed(OncueError):
    """A trigger does not run.

    `oncue triggers list` shows the reason; a sender may try again.
    """

    code = "trigger-failed"
    status = 503


class MissingExtra(OncueError):
    """This feature needs libraries that are not installed."""

    code = "missing-extra"


class LogError(OncueError):
    """The log has failed to read or write."""

    code = "log"


class LogLocked(LogError):
    """Another server has this log open.

    Several servers can share a log on Kafka only.
    """

    code = "log-locked"


class NotOwner(LogError):
    """Another server has taken over the partition.

    It repeats the work that was not committed here.
    """

    code = "not-owner"


class NetworkMount(LogError):
    """SQLite's write-ahead log cannot work on the data folder's network mount."""

    code = "network-mount"


class Undecodable(OncueError):
    """This version of oncue cannot read the record or message."""

    code = "undecodable"


class OtherPython(Undecodable):
    """The bytecode is of another Python version, which would crash this one."""

    code = "other-python"


class Refused(OncueError):
    """The server refused the agent: unknown or revoked key, or a wrong version."""

    code = "refused"


class BlobMissing(OncueError):
    """A large payload is not in the blob store any more, or it is damaged."""

    code = "blob-missing"
    status = 410


# ---------------------------------------------------------------- functions


class FunctionError(OncueError):
    """A function could not be packed, or could not be loaded by the worker."""

    code = "function"


class CannotPack(FunctionError, Invalid):
    """This function or value cannot be sent to a worker."""

    code = "cannot-pack"


class CannotImport(CannotPack):
    """The function's file cannot be imported on this machine."""


class CannotLoad(FunctionError):
    """The function did not load: a module is missing, or Python versions differ."""

    code = "cannot-load"


class MissingOutput(OncueError):
    """A task has not written a file that its `outputs` name."""

    code = "missing-output"


# ---------------------------------------------------------------- tasks without a result


class TaskError(OncueError):
    """The task ended without a result."""

    code = "task"

    task_id: str = ""


class TaskFailed(TaskError):
    """The function raised an exception.

    `type_name`, `message` and `traceback` are those of the exception. If its class is to be had
    here, the exception itself is raised, and this error is its `__cause__`.
    """

    code = "task-failed"

    def __init__(
        self, message: str, *, remedy: str = "", type_name: str = "", traceback: str = "", **details: Any
    ) -> None:
        super().__init__(message, remedy=remedy, type_name=type_name, traceback=traceback, **details)
        self.type_name, self.traceback = type_name, traceback


class ShellFailed(TaskFailed):
    """A shell script ended with an exit code above 0.

    `returncode` is that code, `stderr` the end of what it printed there, `files` the whole stdout
    and stderr, as in ShellResult.
    """

    code = "shell-failed"
    returncode: int = -1
    stderr: str = ""
    files: tuple[Any, ...] = ()


class TaskLost(TaskError):
    """The task's worker died, or its endpoint was disconnected for too long."""

    code = "task-lost"


class TaskTimedOut(TaskError):
    """The function ran longer than its timeout and was stopped."""

    code = "task-timed-out"


class TaskCancelled(TaskError):
    """The task was cancelled before it had a result."""

    code = "task-cancelled"


class TaskExpired(TaskError):
    """The task did not start before it expired."""

    code = "task-expired"


class TaskRefused(TaskError):
    """The endpoint refused the task: it does not serve this person or function."""

    code = "task-refused"


class UnreadableResult(TaskError):
    """The function returned, but its result cannot be unpickled here.

    A module or class is missing, the Python versions differ, or the class cannot be unpickled.
    `.raw` has the bytes, `__cause__` the reason.
    """

    code = "unreadable-result"
    raw: bytes = b""


class UntrustedResult(TaskError):
    """Unpickling runs code, and you neither own nor trust the result's endpoint.

    `.raw` has the bytes.
    """

    code = "untrusted-result"
    raw: bytes = b""
