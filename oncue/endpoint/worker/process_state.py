"""Settings of a worker's process that a task may change.

Settings   of which the last task's are restored, after each task that touched them
Baseline   of the new process: with another function's chunk, it must still hold
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import locale
import os
import resource
import signal
import sys
from types import ModuleType
from typing import Any

from oncue.functions.siblings import activate, sibling_set

_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
#: Modules of which a changed function would break other people's functions, or the worker.
_MODULES = (
    "builtins",
    "os",
    "sys",
    "time",
    "io",
    "signal",
    "struct",
    "types",
    "zlib",
    "pickle",
    "threading",
    "msgspec",
    "msgspec.msgpack",
    "traceback",
    "contextlib",
    "functools",
    "importlib",
    "json",
)
_HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


class Settings:
    """Settings of the process that a task can change and the worker can change back."""

    def __init__(self) -> None:
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self.save()

    def save(self) -> None:
        self._interpreter = _interpreter()
        self._limits = _limits()
        self._affinity = _affinity()
        self._locale = locale.setlocale(locale.LC_ALL)

    def restore(self) -> bool:
        """Restore all. Return False if something cannot be restored."""
        sys.settrace(None)
        sys.setprofile(None)
        recursion, interval, digits, threshold = self._interpreter
        sys.setrecursionlimit(recursion)
        sys.setswitchinterval(interval)
        sys.set_int_max_str_digits(digits)
        gc.enable()
        gc.set_debug(0)
        gc.set_threshold(*threshold)
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(-1)
            faulthandler.cancel_dump_traceback_later()
            faulthandler.enable(2)
        os.umask(self._umask)
        try:
            if locale.setlocale(locale.LC_ALL) != self._locale:
                locale.setlocale(locale.LC_ALL, self._locale)
            if _affinity() != self._affinity:
                os.sched_setaffinity(0, self._affinity)
            if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
                os.setpriority(os.PRIO_PROCESS, 0, self._priority)
            now = _limits()
            for limit in [n for n in now if now[n] != self._limits[n]]:
                resource.setrlimit(limit, self._limits[limit])
        except (OSError, ValueError, locale.Error):
            return False
        return True


class Baseline:
    """State of the new process, which the first task of each function must find."""

    def __init__(self) -> None:
        self._limits, self._affinity = _limits(), _affinity()
        self._modules = {n: m for n, m in sys.modules.items() if n != "__main__"}
        watched = [sys.modules.get(n) for n in _MODULES] + [m for n, m in self._modules.items() if n[:6] == "oncue."]
        self._contents = [(vars(m), _callables(m)) for m in watched if isinstance(m, ModuleType)]

    def holds(self) -> bool:
        """Return True if no function has changed what others use."""
        activate(sibling_set({}))  # the last function's files may stand in for modules
        return (
            self._modules.items() <= sys.modules.items()
            and all(saved.items() <= now.items() for now, saved in self._contents)
            and _limits() == self._limits
            and _affinity() == self._affinity
        )


def _callables(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if callable(value) and name not in _HOOKS}


def _interpreter() -> tuple[int, float, int, tuple[int, int, int]]:
    return sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(), gc.get_threshold()


def _limits() -> dict[int, tuple[int, int]]:
    return {limit: resource.getrlimit(limit) for limit in _LIMITS}


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()
