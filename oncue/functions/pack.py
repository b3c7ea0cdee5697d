"""A callable becomes bytes."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oncue import __version__
from oncue.errors import CannotPack
from oncue.functions import culprit
from oncue.functions.body import PYTHON, FunctionBody, Packed
from oncue.functions.pickler import dumps, short_name
from oncue.functions.source import Files, gather, local_files, part_for, text_of
from oncue.messages import FUNCTION_BYTES, VERSION, encode

_loading = threading.RLock()  # pack_file lends sys.path and sys.modules


def pack_function(fn: Callable[..., Any], *, name: str = "") -> Packed:
    """Any callable but a generator function: functions, lambdas, closures, partials, bound methods, callable instances,
    async functions, classes. The same function gives the same id, also in another process with the same Python.

    Raises CannotPack: not a callable, uses something that cannot travel (it is named), or over FUNCTION_BYTES."""
    under = _underlying(fn)
    label = name or _name(fn, under)
    _refuse(fn, under, label)
    try:
        pickled, pickler = dumps(fn)
    except Exception as e:
        raise _cannot(fn, label, e) from e
    module = getattr(under, "__module__", None) or ""
    source, entry, filename = _source(fn, under, module)
    files, requires = _files(under, module, source, pickler.modules)
    body = encode(
        FunctionBody(
            v=VERSION,
            name=label,
            qualname=getattr(under, "__qualname__", label),
            module=module,
            python=PYTHON,
            source=source,
            pickle=pickled,
            siblings=files,
            requires=requires,
            oncue=__version__,
            entry=entry,
            portable=not pickler.by_value,
            file=filename,
        )
    )
    if len(body) > FUNCTION_BYTES:
        raise CannotPack(
            f"{label} has {len(body):,} bytes with what it uses; at most {FUNCTION_BYTES:,} travel",
            remedy="large data belongs in an argument or a file, not in a global variable or a closure",
            limit_bytes=FUNCTION_BYTES,
        )
    signature, doc = _signature(fn), inspect.getdoc(under) or ""
    return Packed(hashlib.sha256(body).hexdigest(), body, label, signature, doc, _place(under))


# ---------------------------------------------------------------- what is it?


def _underlying(fn: Any) -> Any:
    """The function or class whose source tells what the callable does."""
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


def _refuse(fn: Any, under: Any, label: str) -> None:
    if not callable(fn):
        raise CannotPack(
            f"{fn!r} is a {type(fn).__name__}, not something that can be called",
            remedy="give a function: f, not f(...)",
        )
    code = under if isinstance(under, types.FunctionType) else getattr(under, "__call__", under)  # noqa: B004
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise CannotPack(
            f"{label} is a generator function: what it yields cannot travel one by one",
            remedy="return a list of the values instead",
        )


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
    found = culprit.find(fn)
    if found is None:
        return CannotPack(f"{label} cannot be packed: {type(error).__name__}: {error}", remedy=culprit.remedy_for(fn))
    what, thing = found
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
    return CannotPack(
        f"{label} cannot be packed: {what} is a {kind}, which cannot travel ({error})", remedy=culprit.remedy_for(thing)
    )


# ---------------------------------------------------------------- what goes with it?


def _source(fn: Any, under: Any, module: str) -> tuple[str, str, str]:
    """(source, entry, file). An entry only for a function at the top level of a file: others cannot be built again."""
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


def _files(under: Any, module: str, source: str, named: set[str]) -> tuple[Files, tuple[str, ...]]:
    """Own files and required modules: of the modules that the pickle names, of the function's own, and of what the part of
    a script imports."""
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
        roots = culprit.names_used(under.__code__) if isinstance(under, types.FunctionType) else set()
        text = part_for(text_of(module), roots | {getattr(under, "__qualname__", "").split(".")[0]})
    files, requires = gather(names, text)
    return files, requires


def _used_modules(under: Any) -> set[str]:
    code = getattr(under, "__code__", None)
    return culprit_modules(under, code) if code is not None else set()


def culprit_modules(under: types.FunctionType, code: types.CodeType) -> set[str]:
    """Names of the modules that the function reaches by a global variable."""
    found = (under.__globals__.get(n) for n in culprit.names_used(code))
    return {m.__name__ for m in found if isinstance(m, types.ModuleType)}


# ---------------------------------------------------------------- from a file


def pack_file(path: Path | str, name: str) -> Packed:
    """`file.py:name` as `oncue deploy` and `oncue invoke` take it. The file is imported (its code runs here) under the name
    it would have for a script beside it, and nothing of that stays in sys.modules or sys.path.

    Raises CannotPack: no such file or name, or the file fails to import (where and why)."""
    path = Path(path).absolute()
    if not path.is_file():
        raise CannotPack(f"there is no file {path}", remedy="give the path of a Python file", file=str(path))
    with _imported(path) as module:
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
            near = difflib.get_close_matches(name, own, n=1)
            raise CannotPack(
                f"{path} has no {name!r}",
                remedy=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(own) or 'no functions'}",
                file=str(path),
            )
        return pack_function(found)


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[types.ModuleType]:
    root, dotted = path.parent, path.stem
    while (root / "__init__.py").is_file():
        root, dotted = root.parent, f"{root.name}.{dotted}"
    with _loading:
        before, old_path = dict(sys.modules), list(sys.path)
        _set_aside(root, dotted)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
        linecache.checkcache()
        try:
            yield _import(dotted, path)
        finally:
            sys.path[:] = old_path
            for name in list(sys.modules):  # a list: looking for files imports modules itself
                if name not in before and local_files(name.split(".")[0]):
                    sys.modules.pop(name, None)
            sys.modules.update(before)


def _set_aside(root: Path, dotted: str) -> None:
    """Modules already imported under names that files of this folder have: the folder's own are meant."""
    tops = (
        {dotted.split(".")[0]}
        | {p.stem for p in root.glob("*.py")}
        | {p.parent.name for p in root.glob("*/__init__.py")}
    )
    for name in list(sys.modules):
        top = name.split(".")[0]
        if top in tops and top not in sys.stdlib_module_names and top not in ("oncue", "__main__"):
            del sys.modules[name]


def _import(dotted: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(dotted, path)
    if spec is None or spec.loader is None:
        raise CannotPack(f"{path} is not a Python file", remedy="its name ends with .py", file=str(path))
    try:
        if "." in dotted:
            importlib.import_module(dotted.rpartition(".")[0])
        module = importlib.util.module_from_spec(spec)
        sys.modules[dotted] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise CannotPack(
            f"{path} cannot be imported: {_where(e, path)}{type(e).__name__}: {e}",
            remedy=f"`python {path.name}` shows the same; install what it imports where you deploy from",
            file=str(path),
        ) from e
    return module


def _where(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    line, tb = 0, error.__traceback__
    while tb is not None:
        line = tb.tb_lineno if tb.tb_frame.f_code.co_filename == str(path) else line
        tb = tb.tb_next
    return f"line {line}: " if line else ""
