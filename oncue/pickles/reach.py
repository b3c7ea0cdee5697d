"""Reach: the objects that a function or class uses, to detect changes.

Pickling the function for each check would cost a hundred times as much as a submit. Immutable
objects are therefore compared by identity. If it reaches a mutable object, `fixed` is False, and
the caller must compare the pickled bytes.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

from cloudpickle import cloudpickle as cp

from oncue.pickles import caches
from oncue.pickles.code import names_used

_ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)
#: Attributes that Python and dataclasses add to a class and that are not changed in place. (The
#: defaults of fields are attributes of their own.)
_MADE = frozenset(
    ("__annotations__", "__dataclass_fields__", "__dataclass_params__", "__slots__", "__static_attributes__")
)
#: Modules whose functions and markers count as immutable, though some hold state.
_LIBRARIES = ("dataclasses", "reprlib")
_NOTHING = object()


class Reach:
    """Snapshot of reached objects. It keeps them alive, so that no id is reused."""

    def __init__(self, value: Any) -> None:
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._classes: list[tuple[type, Any, dict[str, Any]]] = []
        self._seen: set[int] = set()
        self.fixed = self._visit(value)

    def same(self) -> bool:
        """True if no reached object was replaced."""
        for known, name, value in self._globals:
            if known.get(name, _NOTHING) is not value:
                return False
        for cell, value in self._cells:
            if _content(cell) is not value:
                return False
        for f, code, defaults, kwdefaults in self._functions:
            if f.__code__ is not code or f.__defaults__ is not defaults or f.__kwdefaults__ is not kwdefaults:
                return False
        return all(_unchanged(*known) for known in self._classes)

    def _visit(self, value: Any) -> bool:
        """Add a value to the snapshot. Return False if it reaches a mutable object."""
        if isinstance(value, _ATOMS) or id(value) in self._seen or type(value).__module__ in _LIBRARIES:
            return True
        if isinstance(value, tuple | frozenset):
            return self._visit_all(value)
        if isinstance(value, functools._lru_cache_wrapper):
            return caches.importable(value) or self._visit(value.__wrapped__)
        if isinstance(value, type | types.FunctionType):
            self._seen.add(id(value))
            if cp._should_pickle_by_reference(value) or value in cp._BUILTIN_TYPE_NAMES:
                return True
            return self._visit_class(value) if isinstance(value, type) else self._visit_function(value)
        return self._visit_wrapped(value)

    def _visit_wrapped(self, value: Any) -> bool:
        kind = type(value)
        if kind is property:
            return self._visit_all((value.fget, value.fset, value.fdel))
        if kind is staticmethod or kind is classmethod:
            return self._visit(value.__func__)
        return kind is functools.cached_property and self._visit(value.func)

    def _visit_all(self, parts: Iterable[Any]) -> bool:
        fixed = True
        for part in parts:
            fixed = self._visit(part) and fixed  # visits each, whatever the others return
        return fixed

    def _visit_function(self, f: types.FunctionType) -> bool:
        if f.__globals__.get("__name__") in _LIBRARIES:
            return True
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
        return self._visit_all(parts) and not f.__kwdefaults__ and not vars(f)

    def _visit_class(self, cls: type) -> bool:
        attributes = _attributes(cls)
        self._classes.append((cls, cls.__bases__, attributes))
        values = [value for name, value in attributes.items() if name not in _MADE]
        return self._visit_all([type(cls), *cls.__bases__, *values])


def _unchanged(cls: type, bases: tuple[type, ...], attributes: dict[str, Any]) -> bool:
    now = _attributes(cls)
    if cls.__bases__ != bases:
        return False
    return len(now) == len(attributes) and all(now.get(n, _NOTHING) is v for n, v in attributes.items())


def _attributes(cls: type) -> dict[str, Any]:
    found = dict(vars(cls))
    found.pop("__slotnames__", None)  # cache that copyreg adds when an instance is pickled
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned
        return _NOTHING
