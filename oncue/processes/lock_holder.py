"""Find the process that holds a lock, and signal that process and no other.

The lock is the truth: the kernel releases it when its process ends, and a process that hangs need
not answer. The pid in the file may be stale, or of another container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

from oncue.errors import Conflict
from oncue.processes.file_lock import holder_pid

_POLL_S = 0.05
_LOCKS = Path("/proc/locks")
_SLACK_S = 2.0  # clocks of a file server and of this machine differ


class LockHolder:
    """The process that held a lock when it was looked up.

    On Linux a descriptor stands for it, so that a reused pid is never signalled. Use it in `with`.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # ended; or an old kernel
                self._fd = os.pidfd_open(pid)

    def __enter__(self) -> LockHolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def send(self, number: int) -> None:
        """Signal the process; does nothing if it has ended. Raises PermissionError."""
        with contextlib.suppress(ProcessLookupError):
            if self._fd >= 0 and sys.platform == "linux":
                signal.pidfd_send_signal(self._fd, number)
            else:
                os.kill(self.pid, number)

    def ended(self) -> bool:
        if self._fd >= 0:
            return bool(select.select([self._fd], [], [], 0)[0])
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def await_end(self, seconds: float) -> bool:
        """Return True when the process has ended, False after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.ended():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._fd >= 0:
                select.select([self._fd], [], [], left)
            else:
                time.sleep(min(_POLL_S, left))
        return True

    def stop(self, grace_s: float, *, kill: bool) -> str:
        """End the process; return how: "TERM", "KILL", or "" if it goes on.

        SIGCONT follows SIGTERM, so that a stopped process (SIGSTOP) can end in order. After
        `grace_s`, `kill` sends SIGKILL.
        """
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        if self.await_end(grace_s):
            return "TERM"
        if not kill:
            return ""
        self.send(signal.SIGKILL)
        return "KILL" if self.await_end(grace_s) else ""  # not while it waits for a disk


def lock_holder(path: Path) -> LockHolder | None:
    """Return the process that holds the lock of this file; None if none does.

    Raises Conflict if a process of another container or machine holds it.
    """
    for _ in range(3):
        pid = holder_pid(path)
        if not pid:
            return None
        holder = LockHolder(pid)
        if _is_surely(pid, path):  # asked last, so the descriptor is that process's
            return holder
        holder.__exit__()
    raise Conflict(
        f"{path} is locked, but not by a process that can be seen here",
        remedy=f"stop it in the container or on the machine where it runs (pid {pid} there)",
    )


def _is_surely(pid: int, path: Path) -> bool:
    """Return True if the kernel names the process as the lock's holder.

    Where the kernel names none (network mounts, macOS), a process of oncue that is not younger than
    the file counts.
    """
    inode = str(path.stat().st_ino)
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[4] == str(pid) and words[5].endswith(":" + inode):
                return True
    import psutil  # imported on use: it costs every command time

    try:
        process = psutil.Process(pid)
        ours = any("oncue" in word for word in process.cmdline())
        return ours and process.create_time() <= path.stat().st_mtime + _SLACK_S
    except psutil.Error:
        return False
