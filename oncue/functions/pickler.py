"""cloudpickle, made to repeat itself: the same function gives the same bytes in another process.

What differs between processes otherwise: absolute paths in code objects, the order of sets of strings (PYTHONHASHSEED), and
the random ids by which cloudpickle tracks classes that travel by value. Such a class is one class in a worker for as long
as its id is the same, and takes the attributes of whichever pickle came last. So its id is the hash of all that its own
pickle holds: another version of it is another class there, and never changes the one that is in use.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
import types
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as cp

from oncue.functions import caches

_tracking = threading.Lock()
_CLOUDPICKLES_NAME = "<dynamic-code>"


class Ordered:
    """Stands for a set in a pickle; comes back as that set."""

    def __init__(self, of: set[Any] | frozenset[Any]) -> None:
        self.of = of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.of), (sorted(self.of, key=repr),)


class FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """`modules`: those that the pickle names; `by_value`: whether it holds bytecode. `named`: classes that travel by value
    get their ids; without, a number each, in the order in which they come."""

    def __init__(self, file: io.BytesIO, named: bool = True) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()
        self.by_value = False
        self._named = named
        self._classes: dict[type, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            self.by_value = True
            return _reduced_code(obj)
        if isinstance(obj, functools._lru_cache_wrapper) and not caches.importable(obj):
            return caches.reduced(obj)
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, type | types.FunctionType):
            if cp._should_pickle_by_reference(obj):
                self.modules.add(obj.__module__ or "")
            elif isinstance(obj, type):
                self.by_value = True
                return self._class(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
            _plain_function(reduced)
        return reduced

    def _class(self, cls: type) -> Any:
        number = str(len(self._classes))
        key = self._classes[cls] = self._classes.get(cls) or (_content_id(cls) if self._named else number)
        with _tracking:
            by_class, by_id = cp._DYNAMIC_CLASS_TRACKER_BY_CLASS, cp._DYNAMIC_CLASS_TRACKER_BY_ID
            before = by_class.get(cls)
            by_class[cls] = key
            if self._named:
                by_id.setdefault(key, cls)
            try:
                reduced = super().reducer_override(cls)
            finally:
                if not self._named:
                    _put_back(by_class, cls, before)
        if isinstance(reduced, tuple) and len(reduced) > 2:
            _order(reduced[2][0])
        return reduced


def _put_back(by_class: Any, cls: type, before: str | None) -> None:
    if before is None:
        by_class.pop(cls, None)
    else:
        by_class[cls] = before


def _content_id(cls: type) -> str:
    """The hash of the class's own pickle, with all that it reaches; of classes in it, numbers stand for the ids."""
    buffer = io.BytesIO()
    FunctionPickler(buffer, named=False).dump(cls)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:32]


def dumps(value: Any) -> tuple[bytes, FunctionPickler]:
    """Raises what pickling raises."""
    buffer = io.BytesIO()
    pickler = FunctionPickler(buffer)
    pickler.dump(value)
    return buffer.getvalue(), pickler


def short_name(filename: str) -> str:
    """A code's file without the folder it happened to be in; notebooks' cells have the process id in theirs."""
    base = os.path.basename(filename) if not filename.startswith("<") else filename
    return "<notebook>" if "ipykernel" in filename or base.startswith("<ipython-input") else base


def _reduced_code(code: types.CodeType) -> Any:
    """As cloudpickle does it, but with the file's name, so that a traceback tells it; sets of texts in order."""
    consts = tuple(Ordered(c) if type(c) is frozenset else c for c in code.co_consts)
    # A code object takes any consts; these are only pickled, never run.
    kind, given = cp._code_reduce(code.replace(co_consts=consts) if consts != code.co_consts else code)
    name = short_name(code.co_filename)
    fields = [name if type(x) is str and x in (_CLOUDPICKLES_NAME, code.co_filename) else x for x in given]
    return kind, tuple(fields)


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
