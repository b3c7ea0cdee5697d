"""Pickler: cloudpickle that gives the same bytes in any process.

Otherwise these differ between processes: absolute paths in code objects, the order of sets of
strings (PYTHONHASHSEED), and the random ids by which cloudpickle tracks classes that are pickled by
value. In a worker, equal ids mean the same class. The id is therefore the hash of the class's own
pickle: another version of the class is another class there, and never changes the one in use. On
the way back a class keeps the id with which it arrived, so that its author finds it again.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import os
import pickle
import threading
import types
from collections.abc import Callable
from typing import Any, Protocol

import cloudpickle
from cloudpickle import cloudpickle as cp

from oncue.pickles import caches, code, dispatches, homes, open_files
from oncue.pickles.code import Ordered
from oncue.pickles.object_ref import ObjectRef, load_object
from oncue.pickles.reach import Reach

_tracking = threading.Lock()
_ids: dict[int, tuple[Reach, str]] = {}  # by id(): each Reach keeps its class alive
_MOST_IDS = 256
_NAMELESS = (type(None), type(...), type(NotImplemented))


class Ids(enum.Enum):
    """Kind of id of a class that is pickled by value."""

    CONTENT = enum.auto()  # hash of its present content
    KEPT = enum.auto()  # the id with which it arrived here, if it did; else as CONTENT
    NUMBERS = enum.auto()  # numbers, in the order of the classes


class WritableFile(Protocol):
    """A file that a pickle is written to."""

    def write(self, data: bytes | memoryview, /) -> int: ...


class References:
    """Modules and ObjectRefs to which a pickle refers."""

    def __init__(self, *, takes_objects: bool = True) -> None:
        self.modules: set[str] = set()
        self.objects: list[ObjectRef[Any]] = []
        self.takes_objects = takes_objects  # False: an ObjectRef cannot be pickled


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Reproducible cloudpickle pickler.

    `modules`: modules named in the pickle. `by_value`: True if it holds bytecode. `codes`: the code
    objects in it. `buffers`: called for each buffer, see pickle.Pickler. `references`: gets what it
    refers to; without it, ObjectRefs cannot be pickled.
    """

    def __init__(
        self,
        file: WritableFile,
        ids: Ids = Ids.CONTENT,
        *,
        buffers: Callable[[pickle.PickleBuffer], Any] | None = None,
        references: References | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers)
        self._references = references or References(takes_objects=False)
        self.modules = self._references.modules
        self.by_value = False
        self.codes: list[types.CodeType] = []
        self._ids = ids
        self._classes: dict[type, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            self.by_value = True
            self.codes.append(obj)
            return code.reduced(obj)
        if type(obj) is ObjectRef:
            return self._object(obj)
        if (reduced := homes.reduced(obj) or self._of_functools(obj)) is not None:
            return reduced
        if isinstance(obj, io.IOBase) and open_files.is_open_file(obj):
            return open_files.reduced(obj)
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

    def _object(self, ref: ObjectRef[Any]) -> Any:
        if not self._references.takes_objects:
            raise TypeError("an ObjectRef travels only as an argument of a call: do not return or capture it")
        self._references.objects.append(ref)
        self.modules |= ref.modules
        return load_object, (ref.payload,)

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
                by_id[key] = cls  # the latest of equal content: a cell may have run again
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
    """True for builtin classes that no module names, as that of None.

    cloudpickle handles them.
    """
    return cls in _NAMELESS or cls in cp._BUILTIN_TYPE_NAMES


def _with_its_name(cls: type, reduced: Any) -> Any:
    """Return the reduced class with its qualified name, which cloudpickle loses.

    Its sets are ordered, and the cache that copyreg keeps in a class is left out.
    """
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
    """Return the hash of the class's own pickle, with everything it reaches.

    It is cached until something of that may have changed.
    """
    known = _ids.get(id(cls))
    if known is not None and known[0].same():
        return known[1]
    reach = Reach(cls)  # before pickling: a change in between is then seen next time
    key = _hash(cls)
    _ids.pop(id(cls), None)
    if reach.fixed:
        _ids[id(cls)] = reach, key
        while len(_ids) > _MOST_IDS:
            _ids.pop(next(iter(_ids)), None)
    return key


def _hash(cls: type) -> str:
    """Hash the class's pickle, in which numbers replace the ids of classes."""
    buffer = io.BytesIO()
    Pickler(buffer, Ids.NUMBERS).dump(cls)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:32]


def dumps(value: Any) -> tuple[bytes, Pickler]:
    """Return (pickle, pickler) of a value. Raises what pickling raises."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler


def _plain_function(reduced: tuple[Any, ...]) -> None:
    """Make a reduced function reproducible, in place.

    Its containers are fresh ones that cloudpickle made for this pickle.
    """
    base_globals = reduced[1][1]
    if isinstance(base_globals.get("__file__"), str):
        base_globals["__file__"] = os.path.basename(base_globals["__file__"])
    _order(reduced[2][1].get("__globals__", {}))


def _order(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if type(value) in (set, frozenset):
            values[name] = Ordered(value)
