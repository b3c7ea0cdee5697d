"""cloudpickle, made to repeat itself: the same function gives the same bytes in another process.

What differs between processes otherwise: absolute paths in code objects, the order of sets of strings (PYTHONHASHSEED), and
the random ids by which cloudpickle tracks classes that travel by value. Such a class is one class in a worker for as long
as its id is the same. So its id is the hash of all that its own pickle holds: another version of it is another class there,
and never changes the one that is in use. On the way back it keeps the id by which it came, whatever it has gone through, so
that its author finds it again.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import os
import threading
import types
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as cp

from oncue.pickles import caches, code, dispatches, homes
from oncue.pickles.code import Ordered
from oncue.pickles.reach import Reach

_tracking = threading.Lock()
_ids: dict[int, tuple[Reach, str]] = {}  # by id(): each Reach keeps its class alive
_MOST_IDS = 256
_NAMELESS = (type(None), type(...), type(NotImplemented))


class Ids(enum.Enum):
    """By which a class that travels by value is known."""

    CONTENT = enum.auto()  # the hash of what it is now
    KEPT = enum.auto()  # the id by which it came here, if it did; else as CONTENT
    NUMBERS = enum.auto()  # one each, in the order in which they come


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """`modules`: those that the pickle names; `by_value`: whether it holds bytecode; `codes`: that bytecode."""

    def __init__(self, file: io.BytesIO, ids: Ids = Ids.CONTENT) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()
        self.by_value = False
        self.codes: list[types.CodeType] = []
        self._ids = ids
        self._classes: dict[type, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            self.by_value = True
            self.codes.append(obj)
            return code.reduced(obj)
        if (reduced := homes.reduced(obj) or self._of_functools(obj)) is not None:
            return reduced
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, type | types.FunctionType):
            if cp._should_pickle_by_reference(obj):
                self.modules.add(obj.__module__ or "")
                return NotImplemented
            if isinstance(obj, type) and not _nameless(obj):
                self.by_value = True
                return self._class(obj)
            if dispatches.dispatches(obj):
                return dispatches.reduced(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
            _plain_function(reduced)
        return reduced

    def _of_functools(self, obj: Any) -> Any:
        if isinstance(obj, functools._lru_cache_wrapper):
            return None if caches.importable(obj) else caches.reduced(obj)
        if type(obj) is functools.singledispatchmethod:
            return dispatches.reduced_method(obj)
        return caches.reduced_property(obj) if type(obj) is functools.cached_property else None

    def _class(self, cls: type) -> Any:
        by_class, by_id = cp._DYNAMIC_CLASS_TRACKER_BY_CLASS, cp._DYNAMIC_CLASS_TRACKER_BY_ID
        key = self._classes[cls] = self._classes.get(cls) or self._id(cls, by_class.get(cls))
        with _tracking:
            before = by_class.get(cls)
            by_class[cls] = key
            if self._ids is not Ids.NUMBERS:
                by_id[key] = cls  # of several of equal content the latest: a notebook's cell may have run again
            try:
                reduced = super().reducer_override(cls)
            finally:
                if self._ids is Ids.NUMBERS:
                    _put_back(by_class, cls, before)
        return _with_its_name(cls, reduced)

    def _id(self, cls: type, before: str | None) -> str:
        if self._ids is Ids.NUMBERS:
            return str(len(self._classes))
        return (before if self._ids is Ids.KEPT else None) or content_id(cls)


def _nameless(cls: type) -> bool:
    """One of Python's own that no module has by its name, as that of None; cloudpickle knows them."""
    return cls in _NAMELESS or cls in cp._BUILTIN_TYPE_NAMES


def _with_its_name(cls: type, reduced: Any) -> Any:
    """With the name of the class it is in, which cloudpickle does not keep; what it has as sets in order; without what copyreg
    notes in it when an instance is pickled."""
    make, given, state, *rest = reduced
    state[0].pop("__slotnames__", None)
    _order(state[0])
    if make is cp._make_skeleton_class and cls.__qualname__ != cls.__name__:
        given = (*given[:-1], {"qualname": cls.__qualname__})
    return make, given, state, *rest


def _put_back(by_class: Any, cls: type, before: str | None) -> None:
    if before is None:
        by_class.pop(cls, None)
    else:
        by_class[cls] = before


def content_id(cls: type) -> str:
    """The hash of the class's own pickle, with all that it reaches. Made anew only when that may have changed."""
    known = _ids.get(id(cls))
    if known is not None and known[0].same():
        return known[1]
    reach = Reach(cls)  # before the pickle: what changes in between is seen the next time
    key = _hash(cls)
    _ids.pop(id(cls), None)
    if reach.fixed:
        _ids[id(cls)] = reach, key
        while len(_ids) > _MOST_IDS:
            _ids.pop(next(iter(_ids)), None)
    return key


def _hash(cls: type) -> str:
    """Of classes in it, numbers stand for the ids."""
    buffer = io.BytesIO()
    Pickler(buffer, Ids.NUMBERS).dump(cls)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:32]


def dumps(value: Any) -> tuple[bytes, Pickler]:
    """Raises what pickling raises."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler


def _plain_function(reduced: tuple[Any, ...]) -> None:
    """In place, in the fresh containers that cloudpickle made for this pickle."""
    base_globals = reduced[1][1]
    if isinstance(base_globals.get("__file__"), str):
        base_globals["__file__"] = os.path.basename(base_globals["__file__"])
    _order(reduced[2][1].get("__globals__", {}))


def _order(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if type(value) in (set, frozenset):
            values[name] = Ordered(value)
