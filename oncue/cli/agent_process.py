"""Start, find and stop the process of an agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from oncue.cli.local_server import alive, await_true
from oncue.disk.private_files import inherited_umask
from oncue.endpoint.settings import load
from oncue.errors import OncueError

GRACE_S = 10.0  # from SIGTERM to SIGKILL


def local_folder(data: Path) -> Path:
    """Return the folder of the endpoint that `oncue up` starts."""
    return data / "endpoints" / "local"


def running_agent(folder: Path) -> int:
    """Return the pid of the agent that holds this folder's lock; 0 if none does."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.pread(handle, 32, 0).decode("ascii", "replace").strip() or 0)
    finally:
        os.close(handle)
    return 0


def agent_command(folder: Path, *, by_hand: bool) -> list[str]:
    """Return the command line of an agent.

    `by_hand`: a person starts it, so it runs even if a person stopped it before.
    """
    # -P: a file in the current folder (queue.py, say) must not shadow a module of the agent.
    command = [sys.executable, "-P", "-m", "oncue.endpoint.run", "--dir", str(folder)]
    return [*command, "--by-hand"] if by_hand else command


def start_agent(folder: Path, *, by_hand: bool, **options: Any) -> subprocess.Popen[bytes]:
    # Its tasks get the umask with which the server was started.
    return subprocess.Popen(agent_command(folder, by_hand=by_hand), umask=inherited_umask(), **options)


def stop_agent(pid: int, process: subprocess.Popen[bytes] | None, grace_s: float = GRACE_S) -> None:
    """Send SIGTERM; send SIGKILL if the agent has not ended after `grace_s`.

    `process` is the agent if it is a child of this process.
    """

    def gone() -> bool:
        return process.poll() is not None if process is not None else not alive(pid)

    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if await_true(gone, grace_s):
            return


def registered_name(folder: Path) -> str:
    """Return the name of the endpoint in this folder;

    "" if it is not registered yet.
    """
    try:
        return load(folder).name
    except OncueError:
        return ""
