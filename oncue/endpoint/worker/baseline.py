"""Baseline of a worker: with another function's chunk, it must still hold."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from oncue.endpoint.worker.settings import affinity, limits
from oncue.functions.siblings import activate, sibling_set

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


class Baseline:
    """State of the new process, which the first task of each function must find."""

    def __init__(self) -> None:
        self._limits, self._affinity = limits(), affinity()
        self._modules = {n: m for n, m in sys.modules.items() if n != "__main__"}
        watched = [sys.modules.get(n) for n in _MODULES] + [m for n, m in self._modules.items() if n[:6] == "oncue."]
        self._contents = [(vars(m), _callables(m)) for m in watched if isinstance(m, ModuleType)]

    def holds(self) -> bool:
        """Return True if no function has changed what others use."""
        activate(sibling_set({}))  # the last function's files may stand in for modules
        return (
            self._modules.items() <= sys.modules.items()
            and all(saved.items() <= now.items() for now, saved in self._contents)
            and limits() == self._limits
            and affinity() == self._affinity
        )


def _callables(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if callable(value) and name not in _HOOKS}
