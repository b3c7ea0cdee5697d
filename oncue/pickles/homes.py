"""Pickle objects of modules that a worker made of a function's source.

They are pickled by their name in the module that the source is from, because their bytecode may be
of another Python than the reader's.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from oncue.errors import Undecodable

HOMES: dict[str, str] = {}  # name of the worker's module -> name of the original


def reduced(obj: Any) -> Any:
    """Return the reduced value, or None for objects of other modules."""
    if not HOMES or not isinstance(obj, type | types.FunctionType) or obj.__module__ not in HOMES:
        return None
    if named(sys.modules.get(obj.__module__), obj.__qualname__) is not obj:
        return None
    return at_home, (HOMES[obj.__module__], obj.__qualname__)


def at_home(module: str, qualname: str) -> Any:
    """Return the object that a module or script has by a name.

    Raises Undecodable.
    """
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
    """Return the object that a module has by a dotted name, or None."""
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
