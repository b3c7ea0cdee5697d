"""Child processes that a task leaves behind: they end with it.

A worker adopts orphans, so that a process in a session of its own, or one whose parent has ended,
is found too (Linux). A function that is `detached` keeps its children.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import Any

from oncue.processes.children import adopt_orphans, children_of, end_children, has_children, reap

LIMIT_S = 5.0  # for killed processes to end


class Children:
    """The children of the tasks of this worker.

    `started`: True after a call that starts a process, until they were looked for.
    """

    def __init__(self) -> None:
        self.started = False
        adopt_orphans()
        for module, name in ((os, "posix_spawn"), (os, "posix_spawnp"), (os, "system"), _fork_exec()):
            self._watch(module, name)

    def _watch(self, module: Any, name: str) -> None:
        real = getattr(module, name, None)
        if real is None:
            return

        @functools.wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.started = True
            return real(*args, **kwargs)

        watched.__module__ = module.__name__
        setattr(module, name, watched)

    def note(self) -> None:
        """Note that a process is started."""
        self.started = True

    def left(self) -> bool:
        """Return True if a task has left children. Cheap if there are none."""
        started, self.started = self.started, False
        if not hasattr(os, "waitid") and not started:  # macOS before Python 3.13: looking costs too much
            return False
        return has_children() and bool(_except_helpers())

    def end(self) -> bool:
        """End them. Return False if objects in this process would start them again."""
        process = sys.modules.get("multiprocessing.process")
        restarted = process is not None and any(p.is_alive() for p in process.active_children())
        ended = end_children(_helpers, LIMIT_S)
        if process is not None:
            process.active_children()  # forgets those that have ended
        forkserver: Any = sys.modules.get("multiprocessing.forkserver")
        if forkserver is not None:
            with contextlib.suppress(Exception):
                forkserver._forkserver._stop()
        if "subprocess" in sys.modules:
            sys.modules["subprocess"]._cleanup()
        reap(ended)
        self.started = False
        return not restarted


def _fork_exec() -> tuple[Any, str]:
    import _posixsubprocess

    return _posixsubprocess, "fork_exec"


def _helpers() -> set[int]:
    """Return the resource tracker of `multiprocessing`.

    It removes semaphores and shared memory. It belongs to the worker: what a module has made at its
    import is in use.
    """
    tracker: Any = sys.modules.get("multiprocessing.resource_tracker")
    pid = getattr(getattr(tracker, "_resource_tracker", None), "_pid", None)
    return {pid} if pid else set()


def _except_helpers() -> set[int]:
    return children_of(os.getpid()) - _helpers()
