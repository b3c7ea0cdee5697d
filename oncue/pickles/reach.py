"""What a function or class reaches, and whether that is still what it was.

To pickle it each time in order to know would cost a hundred times what a submit does. So what can only be replaced is compared
by identity; where it reaches something that can change in place, `fixed` is False, and the bytes have to be compared.
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
#: What Python and dataclasses put into a class, and nobody changes in place. (Its fields' defaults are attributes as well.)
_MADE = frozenset(
    ("__annotations__", "__dataclass_fields__", "__dataclass_params__", "__slots__", "__static_attributes__")
)
#: Whose functions and marks are as they are, though some hold what they note.
_LIBRARIES = ("dataclasses", "reprlib")
_NOTHING = object()


class Reach:
    """Keeps what is reached alive, so that an identity is not given to another thing."""

    def __init__(self, value: Any) -> None:
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._classes: list[tuple[type, Any, dict[str, Any]]] = []
        self._seen: set[int] = set()
        self.fixed = self._look(value)

    def same(self) -> bool:
        """Whether nothing was replaced."""
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

    def _look(self, value: Any) -> bool:
        """Note what can be replaced; whether nothing that is reached can change in place."""
        if isinstance(value, _ATOMS) or id(value) in self._seen or type(value).__module__ in _LIBRARIES:
            return True
        if isinstance(value, tuple | frozenset):
            return self._look_at_all(value)
        if isinstance(value, functools._lru_cache_wrapper):
            return caches.importable(value) or self._look(value.__wrapped__)
        if isinstance(value, type | types.FunctionType):
            self._seen.add(id(value))
            if cp._should_pickle_by_reference(value) or value in cp._BUILTIN_TYPE_NAMES:
                return True
            return self._look_into_class(value) if isinstance(value, type) else self._look_into(value)
        return self._look_at_wrapped(value)

    def _look_at_wrapped(self, value: Any) -> bool:
        kind = type(value)
        if kind is property:
            return self._look_at_all((value.fget, value.fset, value.fdel))
        if kind is staticmethod or kind is classmethod:
            return self._look(value.__func__)
        return kind is functools.cached_property and self._look(value.func)

    def _look_at_all(self, parts: Iterable[Any]) -> bool:
        fixed = True
        for part in parts:
            fixed = self._look(part) and fixed  # each is looked at, whatever the others are
        return fixed

    def _look_into(self, f: types.FunctionType) -> bool:
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
        return self._look_at_all(parts) and not f.__kwdefaults__ and not vars(f)

    def _look_into_class(self, cls: type) -> bool:
        attributes = _attributes(cls)
        self._classes.append((cls, cls.__bases__, attributes))
        values = [value for name, value in attributes.items() if name not in _MADE]
        return self._look_at_all([type(cls), *cls.__bases__, *values])


def _unchanged(cls: type, bases: tuple[type, ...], attributes: dict[str, Any]) -> bool:
    now = _attributes(cls)
    if cls.__bases__ != bases:
        return False
    return len(now) == len(attributes) and all(now.get(n, _NOTHING) is v for n, v in attributes.items())


def _attributes(cls: type) -> dict[str, Any]:
    found = dict(vars(cls))
    found.pop("__slotnames__", None)  # that copyreg notes in it when an instance is pickled
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned
        return _NOTHING
