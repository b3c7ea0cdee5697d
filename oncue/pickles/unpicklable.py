"""Find the part of a value that cannot be pickled, and advise on it."""

from __future__ import annotations

import functools
import io
import types
from collections.abc import Iterator
from typing import Any

from oncue.pickles.code import names_used
from oncue.pickles.open_files import is_open_file
from oncue.pickles.pickler import Ids, Pickler, References

_DEPTH = 6
_MOST_PARTS = 2_000  # looked at: each is pickled


def find(value: Any) -> tuple[str, Any] | None:
    """Return (label, value) of the innermost part that cannot be pickled, or None."""
    return _find(value, _DEPTH, set())


def _find(value: Any, depth: int, seen: set[int]) -> tuple[str, Any] | None:
    seen.add(id(value))
    for label, part in _parts(value):
        if id(part) in seen or len(seen) > _MOST_PARTS:
            continue
        if _is_picklable(part):
            seen.add(id(part))
            continue
        known = remedy_for(part) != _ANY_REMEDY  # its parts would be named in vain
        deeper = _find(part, depth - 1, seen) if depth and not known else None
        return deeper or (label, part)
    return None


def _is_picklable(value: Any) -> bool:
    try:
        Pickler(io.BytesIO(), Ids.KEPT, references=References()).dump(value)
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


def explained(value: Any, error: Exception, found: tuple[str, Any] | None = None) -> tuple[str, str]:
    """Return (message, remedy) for a value that cannot be pickled.

    `found`: its part that cannot, if `find` was called already.
    """
    remedy = remedy_for(value)
    if remedy != _ANY_REMEDY:
        return f"{described(value)} cannot travel ({error})", remedy
    if (found := found or find(value)) is not None:
        return f"{found[0]} is {described(found[1])}, which cannot travel ({error})", remedy_for(found[1])
    return f"a value of type {type(value).__name__} cannot be pickled: {type(error).__name__}: {error}", remedy


def described(value: Any) -> str:
    """Return a noun for a value, as `an open file ('scan.h5')`."""
    if is_open_file(value):
        return f"an open file ({getattr(value, 'name', '?')!r})"
    kind = type(value)
    return "a " + f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


_ANY_REMEDY = "make it inside the function; or put the function and it at the top level of a .py file and import that"
_LIST = "pass a list (list(...)) instead of the generator, or make it inside the function"
_CONNECT = "pass its address or name, and connect inside the function"
_OPEN = "pass the file's name (and the name of what is read in it), and open it inside the function"
_LOCK = "it works within one process: leave it out, or make it inside the function"
_FUTURE = "pass its result: f.result(), or submit from a callback of it"
#: Remedies by the module and name of a class, or of a base; "": any class of that module.
_REMEDIES: dict[tuple[str, str], str] = {
    ("builtins", "generator"): _LIST,
    ("builtins", "async_generator"): _LIST,
    ("builtins", "coroutine"): "pass the async function and its arguments: the worker awaits it",
    ("mmap", "mmap"): "pass the file's name and map it inside the function",
    ("socket", "socket"): _CONNECT,
    ("_socket", "socket"): _CONNECT,
    ("ssl", "SSLContext"): "make it inside the function",
    ("_thread", ""): _LOCK,
    ("threading", "Thread"): "start the thread inside the function",
    ("threading", ""): _LOCK,
    ("subprocess", "Popen"): "start the process inside the function",
    ("weakref", ""): "pass the object itself",
    ("_asyncio", ""): _FUTURE,
    ("concurrent.futures._base", "Future"): _FUTURE,
    ("concurrent.futures._base", "Executor"): "make the executor inside the function",
    ("oncue.client.task", "Task"): _FUTURE,
    ("oncue.client.client", "Client"): "make a Client inside the function",
    ("multiprocessing", ""): "make it inside the function: it works among the children of one process",
    ("sqlite3", ""): _CONNECT,
    ("h5py", ""): _OPEN,
    ("netCDF4", ""): _OPEN,
    ("tables", ""): _OPEN,
    ("_csv", ""): "pass a list of its rows, or the file's name",
    ("posix", "DirEntry"): "pass its path: entry.path",
    ("posix", "ScandirIterator"): "pass the folder's name, or a list of paths",
    ("re", "Match"): "pass what it matched: match.group(), match.groups()",
}
_CONNECTIONS = ("connection", "cursor", "engine", "session", "client", "pool", "database")


def remedy_for(value: Any) -> str:
    """Return advice for a value that cannot be pickled."""
    if is_open_file(value):
        return "pass the file's name and open it inside the function"
    classes = [(cls.__module__, cls.__name__) for cls in type(value).__mro__[:-1]]
    for key in (*classes, *((module.partition(".")[0], "") for module, _ in classes)):
        if key in _REMEDIES:
            return _REMEDIES[key]
    return _CONNECT if type(value).__name__.lower().endswith(_CONNECTIONS) else _ANY_REMEDY
