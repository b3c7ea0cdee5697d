"""Start, find and stop the process of an agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from oncue.disk.private_files import inherited_umask
from oncue.endpoint.settings import load
from oncue.errors import OncueError
from oncue.processes.file_lock import holder_pid
from oncue.processes.lock_holder import lock_holder
from oncue.processes.secrecy import agent_environment

GRACE_S = 10.0  # from SIGTERM to SIGKILL
ENDED = {"TERM": "has stopped", "KILL": "did not answer and was killed", "": "has ended"}


def local_folder(data: Path) -> Path:
    """Return the folder of the endpoint that `oncue up` starts."""
    return data / "endpoints" / "local"


def running_agent(folder: Path) -> int:
    """Return the pid of the agent that holds this folder's lock; 0 if none does."""
    return holder_pid(folder / "lock")


def agent_command(folder: Path, *, by_hand: bool) -> list[str]:
    """Return the command line of an agent.

    `by_hand`: a person starts it, so it runs even if a person stopped it before.
    """
    # -P: a file in the current folder (queue.py, say) must not shadow a module of the agent.
    command = [sys.executable, "-P", "-m", "oncue.endpoint.run", "--dir", str(folder)]
    return [*command, "--by-hand"] if by_hand else command


def start_agent(folder: Path, *, by_hand: bool, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        agent_command(folder, by_hand=by_hand),
        env=agent_environment(os.environ),
        umask=inherited_umask(),  # its tasks get the umask with which the server was started
        **options,
    )


def stop_agent(folder: Path, grace_s: float = GRACE_S) -> tuple[int, str]:
    """End the agent that holds this folder's lock: SIGTERM, after `grace_s` SIGKILL.

    Return (pid, how it ended: TERM, KILL, or "" if it goes on); (0, "") if none runs.
    """
    holder = lock_holder(folder / "lock")
    if holder is None:
        return 0, ""
    with holder:
        return holder.pid, holder.stop(grace_s, kill=True)


def stop_child(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """End an agent that this process has started."""
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(grace_s)


def registered_name(folder: Path) -> str:
    """Return the name of the endpoint in this folder;

    "" if it is not registered yet.
    """
    try:
        return load(folder).name
    except OncueError:
        return ""
