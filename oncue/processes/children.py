"""Child processes: who they are, and adopting those of processes that have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> bool:
    """Make orphans of this process's descendants its own children, as init does.

    Return False where that is not supported: it needs Linux.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def has_children() -> bool:
    """Return True if this process has children, unreaped ones included."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return bool(children_of(os.getpid()))
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> set[int]:
    """Return the children of a process, also ended ones that were not waited for."""
    if sys.platform == "linux":
        try:
            return {int(c) for f in Path(f"/proc/{pid}/task").iterdir() for c in (f / "children").read_text().split()}
        except OSError:  # the process has ended, or the kernel does not list children
            pass
    import psutil

    with contextlib.suppress(psutil.Error):
        return {p.pid for p in psutil.Process(pid).children()}
    return set()


def descendants_of(pid: int) -> set[int]:
    """Return the children of a process, and theirs."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        fresh = children_of(todo.pop()) - found
        found |= fresh
        todo += fresh
    return found


def kill_all(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def end_children(spare: Callable[[], Collection[int]], limit_s: float) -> set[int]:
    """Kill this process's descendants, and wait for them to end.

    Children that `spare` names stay. Return the children that were found. They are zombies then:
    the caller waits for them. Those that a child leaves become children, if this process adopts
    orphans, and end too.
    """
    deadline = time.monotonic() + limit_s
    ended: set[int] = set()
    while time.monotonic() < deadline:
        alive = {pid for pid in children_of(os.getpid()) - set(spare()) if not _is_zombie(pid, ended)}
        if not alive:
            break
        kill_all(alive.union(*map(descendants_of, alive)))
        ended |= alive
        time.sleep(0.001)
    return ended


def _is_zombie(pid: int, ended: set[int]) -> bool:
    with contextlib.suppress(OSError):
        if _has_ended(pid):
            ended.add(pid)
            return True
    return False


def _has_ended(pid: int) -> bool:
    """Return True if a child has ended; it stays a zombie.

    Raises OSError if there is no such child.
    """
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def reap(pids: Collection[int]) -> None:
    """Wait for children that have ended, unless somebody else did."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
