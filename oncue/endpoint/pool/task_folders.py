"""Folders of tasks: sandboxes, and files with what a script prints.

    tasks/<host>-<pid of the worker>/<task>.<attempt>/   stdout  stderr  sandbox/  keep
    tasks/<host>-<pid of the pool>/...                   of a task whose worker has died
    tasks/kept/<task>.<attempt>/                         sandboxes that were kept

A folder ends with its task. What a killed process has left is removed by a later worker of this
host; `keep` marks a sandbox that is kept instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import msgspec

from oncue.protocol.records import Failure

TASKS_VARIABLE = "ONCUE_TASKS"  # of a worker: the folder `tasks`
TASKS, KEPT = "tasks", "kept"
SANDBOX, MARK, STDOUT, STDERR = "sandbox", "keep", "stdout", "stderr"
SWEEP_S = 1.0  # of one sweep; the rest is for the next
KEPT_S = 7 * 86_400.0  # for which a sandbox is kept


def folder_of(tasks: Path, pid: int, task_id: bytes, attempt: int) -> Path:
    """Return the folder of an attempt that a worker of this host runs."""
    return tasks / f"{_host()}-{pid}" / f"{task_id.hex()}.{attempt}"


def keep_sandbox(folder: Path) -> str:
    """Move the sandbox of an attempt that has failed to the kept ones.

    Return its path; "" if it is not to be kept, or cannot be.
    """
    kept = folder.parents[1] / KEPT / folder.name
    if not (folder / MARK).exists():
        return ""
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / SANDBOX, kept)
        os.utime(kept)
    return str(kept) if kept.is_dir() else ""


def take_over(folder: Path) -> Path | None:
    """Move the folder of an attempt to this process, since its worker ends.

    Return None if there is none.
    """
    taken = folder.parents[1] / f"{_host()}-{os.getpid()}" / folder.name
    try:
        taken.parent.mkdir(exist_ok=True)
        os.rename(folder, taken)
    except OSError:
        return None
    return taken


def failure_with_folder(failure: Failure, folder: str) -> Failure:
    return msgspec.structs.replace(failure, folder=folder)


def sweep(tasks: Path) -> None:
    """Remove what dead workers of this host have left, and old kept sandboxes.

    Takes SWEEP_S at most.
    """
    deadline = time.monotonic() + SWEEP_S
    prefix = f"{_host()}-"
    with contextlib.suppress(OSError):
        for entry in [*os.scandir(tasks)]:
            pid = entry.name.removeprefix(prefix)
            if entry.name.startswith(prefix) and pid.isdigit() and not _runs(int(pid)):
                for left in Path(entry.path).iterdir():
                    keep_sandbox(left)
                remove(Path(entry.path), deadline)
        for entry in [*os.scandir(tasks / KEPT)]:
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - KEPT_S:
                remove(Path(entry.path), deadline)


def _runs(pid: int) -> bool:
    import psutil  # on use: a worker is to start soon

    return bool(psutil.pid_exists(pid))


def remove(folder: Path, deadline: float = float("inf")) -> None:
    """Remove a folder, as far as that goes until `deadline` (time.monotonic())."""
    for path, folders, files in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o700)
        for name in files:
            if time.monotonic() > deadline:
                return
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))
        for name in folders:
            with contextlib.suppress(OSError):  # links to folders are among them
                entry = os.path.join(path, name)
                os.unlink(entry) if os.path.islink(entry) else os.rmdir(entry)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _host() -> str:
    return socket.gethostname().replace("/", "_")
