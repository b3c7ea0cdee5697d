"""Restores what a function may change for the next task of its worker.

That is: working directory, environment, sys.path, signal handlers, timers, and the settings of
process_state.py. A check of all of them after each task would cost more than the task. So the
functions that change them are wrapped, and nothing is checked that was not touched.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import locale
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from oncue.endpoint.worker import process_state

_WATCHED = (
    # os.environ's methods look putenv up in os; contextlib.chdir looks chdir up there.
    (os, ("chdir", "fchdir", "putenv", "unsetenv", "umask", "nice", "setpriority", "sched_setaffinity")),
    (signal, ("alarm", "setitimer", "pthread_sigmask", "set_wakeup_fd")),
    (sys, ("setrecursionlimit", "settrace", "setprofile", "setswitchinterval", "set_int_max_str_digits")),
    (gc, ("disable", "set_threshold", "set_debug")),
    (resource, ("setrlimit", "prlimit")),
    (locale, ("setlocale",)),
    (faulthandler, ("disable", "enable", "dump_traceback_later", "unregister")),
)
#: What these change cannot be changed back: the worker ends after the task.
_FINAL = (
    "setuid",
    "setgid",
    "seteuid",
    "setegid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setgroups",
    "initgroups",
    "chroot",
    "unshare",
    "setns",
    "setpgid",
    "setpgrp",
    "setsid",
)


class Cleanup:
    """The state to restore, and whether a task has touched it (`dirty`)."""

    def __init__(self, at_home: str) -> None:
        self.dirty = False
        self.worn = False  # something cannot be restored
        self._home = at_home
        self._environ: dict[str, str] = {}
        self._handlers: dict[int, Any] = {}
        self._set_signal = signal.signal
        self._real_chdir = os.chdir
        self._settings = process_state.Settings()
        self.path: list[str] = []
        self.save()
        for module, names in _WATCHED:
            for name in names:
                self._watch(module, name)
        for name in _FINAL:
            self._watch(os, name, final=True)
        self._watch(sys, "addaudithook", final=True)  # nothing removes a hook
        signal.signal = self._signal  # type: ignore[assignment]

    def save(self) -> None:
        """Save the present state.

        Called after a function was loaded, whose imports may set things up.
        """
        self._environ = dict(os.environ)
        self.path = list(sys.path)
        self._handlers.clear()
        self._settings.save()

    def _watch(self, module: Any, name: str, final: bool = False) -> None:
        real: Callable[..., Any] | None = getattr(module, name, None)
        if real is None:  # not on this system, or not in this Python
            return

        @functools.wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.dirty = True
            result = real(*args, **kwargs)
            self.worn = self.worn or final
            return result

        setattr(module, name, watched)

    def _signal(self, number: int, handler: Any) -> Any:
        before = self._set_signal(number, handler)
        self._handlers.setdefault(int(number), before)
        self.dirty = True
        return before

    def restore(self) -> None:
        """Restore the saved state. Called if `dirty`, or if sys.path is not `path`."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number, handler in self._handlers.items():
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._set_signal(number, handler)
        self._handlers.clear()
        self.go_home()
        zone = os.environ.get("TZ")
        for name in [n for n in os.environ if n not in self._environ]:
            del os.environ[name]
        for name, value in self._environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if os.environ.get("TZ") != zone:
            time.tzset()
        sys.path[:] = self.path
        if not self._settings.restore():
            self.worn = True
        self.dirty = False

    def go_home(self) -> None:
        """Enter the working directory; make it anew if a task has removed it."""
        try:
            self._real_chdir(self._home)
        except OSError:
            with contextlib.suppress(OSError):
                os.makedirs(self._home, exist_ok=True)
                self._real_chdir(self._home)

    def at_home(self) -> bool:
        try:
            return os.getcwd() == self._home
        except OSError:  # removed
            return False
