"""Run Python functions when files arrive, webhooks are called, or you ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oncue.version import __version__

__all__ = [
    "AsyncClient",
    "BlobMissing",
    "BoundClient",
    "CannotLoad",
    "CannotPack",
    "Client",
    "ClientClosed",
    "Conflict",
    "Forbidden",
    "FunctionError",
    "Invalid",
    "NotFound",
    "ObjectRef",
    "OncueError",
    "OncueExecutor",
    "Options",
    "OutputFile",
    "Retry",
    "ShellFailed",
    "ShellResult",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskFuture",
    "TaskLost",
    "TaskRefused",
    "TaskTimedOut",
    "Unauthorized",
    "Unreachable",
    "UnreadableResult",
    "UntrustedResult",
    "__version__",
    "as_completed",
    "done",
    "file",
    "function",
    "mpi",
    "rule",
    "shell",
    "webhook",
]

if TYPE_CHECKING:
    from oncue.client import AsyncClient, BoundClient, Client, Options, Retry, Task, as_completed
    from oncue.client.executor import OncueExecutor, TaskFuture
    from oncue.client.files import OutputFile, ShellResult
    from oncue.errors import (
        BlobMissing,
        CannotLoad,
        CannotPack,
        ClientClosed,
        Conflict,
        Forbidden,
        FunctionError,
        Invalid,
        NotFound,
        OncueError,
        TaskCancelled,
        TaskError,
        TaskExpired,
        TaskFailed,
        TaskLost,
        TaskRefused,
        TaskTimedOut,
        Unauthorized,
        Unreachable,
        UnreadableResult,
        UntrustedResult,
    )
    from oncue.functions.declared_rules import done, file, rule, webhook
    from oncue.functions.options import function
    from oncue.functions.shell.mpi import mpi
    from oncue.functions.shell.pack import shell
    from oncue.pickles import ObjectRef

#: Modules of the names that are no errors.
_HOMES = (
    {
        "ObjectRef": "pickles",
        "OncueExecutor": "client.executor",
        "OutputFile": "client.files",
        "ShellResult": "client.files",
        "TaskFuture": "client.executor",
        "function": "functions.options",
        "mpi": "functions.shell.mpi",
        "shell": "functions.shell.pack",
    }
    | dict.fromkeys(("done", "file", "rule", "webhook"), "functions.declared_rules")
    | dict.fromkeys(("AsyncClient", "BoundClient", "Client", "Options", "Retry", "Task", "as_completed"), "client")
)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import the client on first use, so that workers and agents start without it."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"oncue.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'oncue' has no attribute {name!r}")
