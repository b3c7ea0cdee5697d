"""Pack a callable into bytes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from oncue.errors import CannotPack
from oncue.functions.body import FunctionBody, Packed
from oncue.functions.lines import lines_of
from oncue.functions.options import FunctionOptions, function_folder, marked_options, read_files, source_file
from oncue.functions.signature import parameters_of
from oncue.functions.source import Contents, Files, collect_files, local_files, part_for, text_of
from oncue.pickles import PYTHON, dumps, short_name, unpicklable
from oncue.pickles.code import names_used
from oncue.protocol.codec import encode
from oncue.protocol.records import FUNCTION_BYTES, VERSION
from oncue.version import __version__

_managers: tuple[Any, ...] = (contextlib.contextmanager, contextlib.asynccontextmanager)
_CONTEXTS = [make(lambda: None).__code__ for make in _managers]  # code of their wrapper functions


def pack_function(
    fn: Callable[..., Any], *, name: str = "", modules: Iterable[str] = (), options: FunctionOptions | None = None
) -> Packed:
    """Pack any callable but a generator function.

    Functions, async functions, lambdas, closures, partials, bound methods, callable instances and
    classes. The same function has the same id, also in another process with the same Python.
    `modules`: more modules of the user's that it needs, for its arguments. `options` are added to
    those that oncue.function has set.
    Raises CannotPack if it is not callable, uses something that cannot be pickled (which is named),
    or exceeds FUNCTION_BYTES.
    """
    under = _underlying(fn)
    label = name or _name(fn, under)
    _check_callable(fn, under, label)
    try:
        pickled, pickler = dumps(fn)
    except Exception as e:
        raise _cannot(fn, label, e) from e
    module = getattr(under, "__module__", None) or ""
    source, entry, filename = _source(fn, under, module)
    contents = _contents(under, module, source, pickler.modules.union(modules))
    options = marked_options(fn, under).merged(options)
    files = _named_files(options.files, under, contents.siblings, label)
    travelling = {name.split("/")[-1] for name in files}
    body = encode(
        FunctionBody(
            v=VERSION,
            name=label,
            qualname=getattr(under, "__qualname__", label),
            module=module,
            python=PYTHON,
            source=source,
            pickle=pickled,
            siblings=contents.siblings,
            requires=contents.requires,
            oncue=__version__,
            entry=entry,
            portable=not pickler.by_value,
            file=filename,
            lines=lines_of(pickler.codes),
            fresh=options.fresh,
            memory_bytes=options.memory_bytes,
            detached=options.detached,
            files=files,
            run=options.run,
            compiled={m: path.name for m, path in contents.compiled.items() if path.name not in travelling},
        )
    )
    if len(body) > FUNCTION_BYTES:
        raise CannotPack(
            f"{label} has {len(body):,} bytes with what it uses; at most {FUNCTION_BYTES:,} travel",
            remedy="large data belongs in an argument, or in a file that the endpoint can read",
            limit_bytes=FUNCTION_BYTES,
        )
    signature, doc = _signature(fn), inspect.getdoc(under) or ""
    return Packed(hashlib.sha256(body).hexdigest(), body, label, signature, doc, _place(under), parameters_of(fn))


# ---------------------------------------------------------------- what is it?


def _underlying(fn: Any) -> Any:
    """Return the function or class with the callable's source."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, types.MethodType):
        return fn.__func__
    if isinstance(fn, types.FunctionType | types.BuiltinFunctionType | type):
        return fn
    return type(fn) if not isinstance(getattr(fn, "__wrapped__", None), types.FunctionType) else fn.__wrapped__


def _name(fn: Any, under: Any) -> str:
    found = str(getattr(under, "__name__", "") or type(fn).__name__)
    return "lambda" if found == "<lambda>" else found


def _check_callable(fn: Any, under: Any, label: str) -> None:
    if not callable(fn):
        raise CannotPack(
            f"{fn!r} is a {type(fn).__name__}, not something that can be called",
            remedy="give a function: f, not f(...)",
        )
    if _is_context(under):
        raise CannotPack(
            f"{label} makes a context manager, which cannot travel back",
            remedy="use it inside a function, in a `with`, and return what that needs",
        )
    code = under
    if not isinstance(under, types.FunctionType):
        code = getattr(under, "__call__", under)  # noqa: B004
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise CannotPack(
            f"{label} is a generator function: what it yields cannot travel one by one",
            remedy="return a list of the values instead",
        )


def _is_context(under: Any) -> bool:
    """True if contextlib.contextmanager or asynccontextmanager made it."""
    return isinstance(under, types.FunctionType) and under.__code__ in _CONTEXTS


def _signature(fn: Any) -> str:
    try:
        return str(inspect.signature(fn))
    except (ValueError, TypeError):  # builtins without one
        return "(...)"


def _place(under: Any) -> str:
    try:
        path = inspect.getsourcefile(under) or ""
    except TypeError:
        return ""
    code = getattr(inspect.unwrap(under), "__code__", None) if isinstance(under, types.FunctionType) else None
    return f"{path}:{code.co_firstlineno}" if code else path


def _cannot(fn: Any, label: str, error: Exception) -> CannotPack:
    found = unpicklable.find(fn)
    if found is None:
        return CannotPack(
            f"{label} cannot be packed: {type(error).__name__}: {error}", remedy=unpicklable.remedy_for(fn)
        )
    message, remedy = unpicklable.explained(fn, error, found)
    return CannotPack(f"{label} cannot be packed: {message}", remedy=remedy)


# ---------------------------------------------------------------- what goes with it?


def _source(fn: Any, under: Any, module: str) -> tuple[str, str, str]:
    """Return (source, entry, file).

    Only a function at the top level of a file has an entry: others cannot be rebuilt.
    """
    code = getattr(inspect.unwrap(under), "__code__", None) if isinstance(under, types.FunctionType) else None
    qualname = getattr(under, "__qualname__", "")
    text = text_of(module)
    top = isinstance(fn, types.FunctionType) and qualname.isidentifier()
    if text and top and getattr(sys.modules.get(module), qualname, None) is fn:
        part = part_for(text, {qualname})
        if part:
            return part, qualname, short_name(sys.modules[module].__file__ or "")
    if not text and module and module != "__main__":
        return "", "", ""
    filename = short_name(code.co_filename) if code else ""
    try:
        return inspect.getsource(under), "", filename
    except (OSError, TypeError, IndexError):
        return "", "", filename


def _named_files(patterns: Sequence[str], under: Any, siblings: Files, label: str) -> dict[str, bytes]:
    """Return the files of the option `files`, by their path beside the siblings."""
    if not patterns:
        return {}
    base = function_folder(under)
    file = source_file(under)
    depth = next((name.count("/") for name in siblings if file.endswith("/" + name)), 0)
    return read_files(patterns, base, [base, *base.parents][depth], label)


def _contents(under: Any, module: str, source: str, named: set[str]) -> Contents:
    """Return the user's own files, required modules, and own compiled modules.

    They are those of the modules that the pickle names, of the function's own module, and of the
    imports in its part of a script.
    """
    names = {*named, *_used_modules(under)}
    if module and local_files(module):
        names.add(module)
    elif module != "__main__":
        names.add(module)
        source = ""  # an installed package brings its own
    if not source and module == "__main__":
        names.discard("__main__")
    text = source or ""
    if module == "__main__" and text_of(module):
        roots = names_used(under.__code__) if isinstance(under, types.FunctionType) else set()
        text = part_for(text_of(module), roots | {getattr(under, "__qualname__", "").split(".")[0]})
    return collect_files(names, text)


def _used_modules(under: Any) -> set[str]:
    code = getattr(under, "__code__", None)
    return _global_modules(under, code) if code is not None else set()


def _global_modules(under: types.FunctionType, code: types.CodeType) -> set[str]:
    """Return the names of modules that the function uses as global variables."""
    found = (under.__globals__.get(n) for n in names_used(code))
    return {m.__name__ for m in found if isinstance(m, types.ModuleType)}
