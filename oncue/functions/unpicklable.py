"""Find the part of a callable that cannot be pickled."""

from __future__ import annotations

import functools
import io
import types
from collections.abc import Iterator
from typing import Any

from oncue.pickles import dumps
from oncue.pickles.code import names_used

_DEPTH = 6


def find(value: Any) -> tuple[str, Any] | None:
    """Return (label, value) of the innermost part that cannot be pickled, or None."""
    return _find(value, _DEPTH, set())


def _find(value: Any, depth: int, seen: set[int]) -> tuple[str, Any] | None:
    seen.add(id(value))
    for label, part in _parts(value):
        if id(part) in seen or _is_picklable(part):
            continue
        deeper = _find(part, depth - 1, seen) if depth else None
        return deeper or (label, part)
    return None


def _is_picklable(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case functools.partial():
            yield "the function of the partial", value.func
            yield from ((f"argument {i} of the partial", a) for i, a in enumerate(value.args))
            yield from ((f"argument {k!r} of the partial", a) for k, a in value.keywords.items())
        case types.MethodType():
            yield "the object of the method", value.__self__
            yield "the method's function", value.__func__
        case types.FunctionType():
            yield from _function_parts(value)
        case dict():
            yield from ((f"the entry {k!r}", v) for k, v in value.items())
        case list() | tuple() | set() | frozenset():
            yield from ((f"element {i}", v) for i, v in enumerate(value))
        case type():
            yield from ((f"the class attribute {k!r} of {value.__name__}", v) for k, v in vars(value).items())
        case types.ModuleType():
            return
        case _ if hasattr(value, "__dict__"):
            yield from ((f"the attribute {k!r} of {type(value).__name__}", v) for k, v in vars(value).items())


def _function_parts(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=False):
        try:
            yield f"the variable {name!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in sorted(names_used(f.__code__)):
        if name in f.__globals__:
            yield f"the global variable {name!r}", f.__globals__[name]
    for i, value in enumerate(f.__defaults__ or ()):
        yield f"default value {i}", value
    yield from ((f"the default of {k!r}", v) for k, v in (f.__kwdefaults__ or {}).items())
    yield from ((f"the attribute {k!r} of the function", v) for k, v in vars(f).items())


def remedy_for(value: Any) -> str:
    """Return advice for a value that cannot be pickled."""
    if isinstance(value, types.GeneratorType):
        return "pass a list (list(...)) instead of the generator, or make it inside the function"
    if isinstance(value, io.IOBase):
        return "pass the file's name and open it inside the function"
    return "make it inside the function; or put the function and it at the top level of a .py file and import that"
