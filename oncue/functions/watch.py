"""Whether a function is still what it was when it was packed.

A global variable may be set anew, a notebook's cell run again, a list changed in place: what is submitted then is another
function. To pack it each time would cost a hundred times what a submit does. So what can only be replaced is compared by
identity; only where the function reaches something that can change in place, it is pickled again and the bytes compared.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable
from typing import Any

from cloudpickle import cloudpickle as cp

from oncue.functions.culprit import names_used
from oncue.pickles import caches, dumps

_ATOMS = (type(None), bool, int, float, complex, str, bytes, types.BuiltinFunctionType, types.ModuleType, range)
_NOTHING = object()


class Watch:
    """To be made of a callable right after it was packed. Keeps what the callable reaches alive, so that an identity is
    not given to another thing."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._seen: set[int] = set()
        fixed = self._look(fn)
        self._pickled = b"" if fixed else _hash(fn)

    def same(self) -> bool:
        """Raises what pickling raises, where something that is reached cannot be pickled any more."""
        for known, name, value in self._globals:
            if known.get(name, _NOTHING) is not value:
                return False
        for cell, value in self._cells:
            if _content(cell) is not value:
                return False
        for f, code, defaults, kwdefaults in self._functions:
            if f.__code__ is not code or f.__defaults__ is not defaults or f.__kwdefaults__ is not kwdefaults:
                return False
        return not self._pickled or _hash(self._fn) == self._pickled

    def _look(self, value: Any) -> bool:
        """Note what can be replaced; whether nothing that is reached can change in place."""
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return True
        if isinstance(value, tuple | frozenset):
            return self._look_at_all(value)
        if isinstance(value, functools._lru_cache_wrapper):
            return caches.importable(value) or self._look(value.__wrapped__)
        if isinstance(value, type):
            return bool(cp._should_pickle_by_reference(value))
        if not isinstance(value, types.FunctionType):
            return False
        self._seen.add(id(value))
        return bool(cp._should_pickle_by_reference(value)) or self._look_into(value)

    def _look_at_all(self, parts: Iterable[Any]) -> bool:
        fixed = True
        for part in parts:
            fixed = self._look(part) and fixed  # each is looked at, whatever the others are
        return fixed

    def _look_into(self, f: types.FunctionType) -> bool:
        self._functions.append((f, f.__code__, f.__defaults__, f.__kwdefaults__))
        parts: list[Any] = [*(f.__defaults__ or ())]
        for name in names_used(f.__code__):
            found = f.__globals__.get(name, _NOTHING)
            self._globals.append((f.__globals__, name, found))
            if found is not _NOTHING:
                parts.append(found)
        for cell in f.__closure__ or ():
            found = _content(cell)
            self._cells.append((cell, found))
            if found is not _NOTHING:
                parts.append(found)
        return self._look_at_all(parts) and not f.__kwdefaults__ and not vars(f)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned
        return _NOTHING


def _hash(fn: Any) -> bytes:
    return hashlib.sha256(dumps(fn)[0]).digest()
