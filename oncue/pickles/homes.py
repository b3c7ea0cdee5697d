"""Modules that a worker made of a function's source, and the modules that the source is of. What is defined in the former
travels by its name at home: its bytecode may be of another Python than the reader's."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from oncue.errors import Undecodable

HOMES: dict[str, str] = {}  # name here -> name at home


def reduced(obj: Any) -> Any:
    """None for what is not at home elsewhere."""
    if not HOMES or not isinstance(obj, type | types.FunctionType) or obj.__module__ not in HOMES:
        return None
    if named(sys.modules.get(obj.__module__), obj.__qualname__) is not obj:
        return None
    return at_home, (HOMES[obj.__module__], obj.__qualname__)


def at_home(module: str, qualname: str) -> Any:
    """What a script's or a module's own name stands for here. Raises Undecodable."""
    try:
        found = named(sys.modules.get(module) or importlib.import_module(module), qualname)
    except ImportError:
        found = None
    if found is None:
        raise Undecodable(
            f"the value is a {qualname} of {module!r}, which this program does not have",
            remedy=f"read it in the program that defines {qualname}, or return plain data: numbers, text, lists, dicts",
        )
    return found


def named(module: types.ModuleType | None, qualname: str) -> Any:
    """What a module has under a name with dots; None for nothing."""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
