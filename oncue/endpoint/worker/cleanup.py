"""Restores what a function may change for the next task of its worker.

That is: working directory, environment, sys.path, signal handlers, timers. A check of all of them
after each task would cost more than the task. So the functions that change them are wrapped, and
nothing is checked that was not touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


class Cleanup:
    """The state to restore, and whether a task has touched it (`dirty`)."""

    def __init__(self, at_home: str) -> None:
        self.dirty = False
        self._home = at_home
        self._environ: dict[str, str] = {}
        self._handlers: dict[int, Any] = {}
        self._set_signal = signal.signal
        self._real_chdir = os.chdir
        self.path: list[str] = []
        self.save()
        # os.environ's methods look putenv up in os; contextlib.chdir looks chdir up there.
        for name in ("chdir", "fchdir", "putenv", "unsetenv"):
            self._watch(os, name)
        for name in ("alarm", "setitimer", "pthread_sigmask"):
            self._watch(signal, name)
        signal.signal = self._signal  # type: ignore[assignment]

    def save(self) -> None:
        """Save the present state.

        Called after a function was loaded, whose imports may set things up.
        """
        self._environ = dict(os.environ)
        self.path = list(sys.path)
        self._handlers.clear()

    def _watch(self, module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        @functools.wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.dirty = True
            return real(*args, **kwargs)

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
        with contextlib.suppress(OSError):
            self._real_chdir(self._home)
        for name in [n for n in os.environ if n not in self._environ]:
            del os.environ[name]
        for name, value in self._environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        sys.path[:] = self.path
        self.dirty = False
