"""cloudpickle, made to repeat itself: the same function gives the same bytes in another process.

What differs between processes otherwise: absolute paths in code objects, the order of sets of strings (PYTHONHASHSEED), and
the random ids by which cloudpickle tracks classes that travel by value.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import types
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as cp

_tracking = threading.Lock()


class Ordered:
    """Stands for a set in a pickle; comes back as that set."""

    def __init__(self, of: set[Any] | frozenset[Any]) -> None:
        self.of = of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.of), (sorted(self.of, key=repr),)


class FunctionPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """`modules`: those that the pickle names; `by_value`: whether it holds bytecode."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.modules: set[str] = set()
        self.by_value = False

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            self.by_value = True
            return cp._code_reduce(_plain_code(obj))
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, type | types.FunctionType):
            if cp._should_pickle_by_reference(obj):
                self.modules.add(obj.__module__ or "")
            elif isinstance(obj, type):
                self.by_value = True
                _track(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
            _plain_function(reduced)
        elif isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) > 2:
            _order(reduced[2][0])
        return reduced


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


def _plain_code(code: types.CodeType) -> types.CodeType:
    consts = tuple(Ordered(c) if type(c) is frozenset else c for c in code.co_consts)
    code = code.replace(co_filename=short_name(code.co_filename))
    # A code object takes any consts; these are only pickled, never run.
    return code.replace(co_consts=consts) if consts != code.co_consts else code


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


def _track(cls: type) -> None:
    """Give a class that travels by value an id that repeats, by what it is: its name, bases, and the code of its methods."""
    try:
        by_class, by_id = cp._DYNAMIC_CLASS_TRACKER_BY_CLASS, cp._DYNAMIC_CLASS_TRACKER_BY_ID
    except AttributeError:  # another cloudpickle: its own random id does no harm but to repeatability
        return
    digest = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode())
    for name, value in sorted(vars(cls).items()):
        digest.update(name.encode() + b"\0")
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        digest.update(_fingerprint(code) if code is not None else type(value).__name__.encode())
        if isinstance(value, str | int | float | bytes | bool | None):
            digest.update(repr(value).encode())
    key = digest.hexdigest()[:32]
    with _tracking:
        if cls not in by_class and key not in by_id:
            by_class[cls] = key
            by_id[key] = cls


def _fingerprint(code: types.CodeType) -> bytes:
    inner = b"".join(_fingerprint(c) for c in code.co_consts if isinstance(c, types.CodeType))
    plain = repr([c for c in code.co_consts if isinstance(c, str | int | float | bytes | None)])
    return hashlib.sha256(code.co_code + repr(code.co_names).encode() + plain.encode() + inner).digest()
