"""Load a packed function. **Runs code**.

Only workers, and clients of their own functions, may do this.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import linecache
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from oncue.errors import CannotLoad
from oncue.functions.body import FunctionBody, describe
from oncue.functions.lines import Entry, entries
from oncue.functions.main_module import globals_of, main_module, script_file
from oncue.functions.remedies import compiled_remedy, pip_line, remedy_for
from oncue.functions.siblings import SiblingSet, activate, show, sibling_set
from oncue.pickles import HOMES, PYTHON, loads


class Loaded(msgspec.Struct, frozen=True):
    """A loaded function. Call activate() before each call."""

    call: Callable[..., Any]
    siblings: SiblingSet
    is_async: bool
    body: FunctionBody
    lines: dict[str, Entry]
    main: types.ModuleType  # what `__main__` is for it
    home: str = ""  # working directory, if it is not the worker's

    def activate(self) -> None:
        """Make its modules importable, and show its lines in tracebacks."""
        activate(self.siblings)
        linecache.cache.update(self.lines)


def load_function(body: bytes) -> Callable[..., Any]:
    """Return the callable.

    Raises CannotLoad (which module is missing, which versions differ), Undecodable.
    """
    return load(describe(body)).call


def names_of(path: str) -> dict[str, Any]:
    """Return the global names of the function whose body a file has.

    They are the names of `__main__` in a child process that does not fork (main_module.py).
    """
    body = describe(Path(path).read_bytes())
    call = load(body).call
    names = globals_of(call) or {}
    return {body.qualname: call} | {name: value for name, value in names.items() if not name.startswith("__")}


def load(body: FunctionBody) -> Loaded:
    """Load from the pickle if its bytecode fits, else from the source.

    Its siblings stay active. Raises CannotLoad.
    """
    siblings, script = _write_files(body)
    activate(siblings)
    importlib.invalidate_caches()
    failures: list[BaseException] = []
    call: Any = None
    if body.portable or body.python == PYTHON:
        call = _try(lambda: loads(body.pickle), failures)
    if call is None and body.entry:
        call = _try(lambda: _from_source(body, script), failures)
    elif script and "__file__" in (names := globals_of(call) or {}):
        names["__file__"] = script
    if not callable(call):
        raise _cannot_load(body, failures) from (failures[-1] if failures else None)
    shown = body.lines | ({body.file: body.source} if body.entry else {})
    lines = {name: entry for name, entry in entries(shown).items() if name not in body.siblings}
    # Files of a notebook's function are relative to its working directory: it has no `__file__`.
    home = siblings.folder if body.files and not script and not body.portable else ""
    loaded = Loaded(call, siblings, _is_async(call), body, lines, main_module(call, body), home)
    loaded.activate()
    return loaded


def _write_files(body: FunctionBody) -> tuple[SiblingSet, str]:
    """Return (siblings, path of the script, "" without one)."""
    try:
        siblings = sibling_set({name: text.encode() for name, text in body.siblings.items()} | body.files)
        return siblings, "" if body.portable else script_file(body, siblings.folder)
    except OSError as e:
        raise CannotLoad(
            f"the files of {body.name} cannot be written on the endpoint: {e}",
            remedy="look for space and permissions in the endpoint's folder there",
        ) from e


def _try(build: Callable[[], Any], failures: list[BaseException]) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as e:
        failures.append(e)
        return None


def _from_source(body: FunctionBody, script: str) -> Any:
    # One module a source: two scripts are both `__main__`, and each has its own classes.
    digest = hashlib.sha256(body.source.encode()).hexdigest()[:8]
    module = types.ModuleType(f"oncue_source_{body.module.strip('_')}_{digest}")
    module.__file__ = script or body.file
    show(body.file, body.source)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    HOMES[module.__name__] = body.module
    exec(compile(body.source, body.file or "<source>", "exec", dont_inherit=True), module.__dict__)
    return getattr(module, body.entry)


def _is_async(call: Any) -> bool:
    if inspect.iscoroutinefunction(call):
        return True
    return inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def _cannot_load(body: FunctionBody, failures: list[BaseException]) -> CannotLoad:
    here = f"the worker's Python {PYTHON} ({sys.executable})"
    missing = [f.name for f in failures if isinstance(f, ModuleNotFoundError) and f.name]
    missing += [m for m in body.requires if m not in missing and not _is_importable(m)]
    if files := [body.compiled[m] for m in missing if m in body.compiled]:
        return CannotLoad(
            f"{body.name} needs {', '.join(files)}, which did not travel with it", remedy=compiled_remedy(files[0])
        )
    if missing and any(isinstance(f, ImportError) for f in failures):
        names = ", ".join(dict.fromkeys(m.split(".")[0] for m in missing))
        return CannotLoad(
            f"{body.name} needs {names}, which {here} does not have",
            remedy="on the endpoint: " + " && ".join(pip_line(m) for m in names.split(", ")),
            missing=names.split(", "),
        )
    reasons = "; ".join(f"{type(f).__name__}: {f}" for f in failures)
    if body.python != PYTHON and not body.portable:
        why = reasons or "it is a closure, a lambda, or from a prompt, so its source alone is not enough"
        return CannotLoad(
            f"{body.name} was packed with Python {body.python}, whose bytecode {here} cannot run; {why}",
            remedy=f"run the endpoint with Python {body.python}, or put the function at the top level of a .py file",
            python=body.python,
        )
    return CannotLoad(
        f"{body.name} cannot be loaded by {here}: {reasons}", remedy=_remedy_of_loading(body, failures[-1:])
    )


def _remedy_of_loading(body: FunctionBody, failures: list[BaseException]) -> str:
    versions = f"versions of packages may differ; it was packed with Python {body.python}, oncue {body.oncue}"
    for error in failures:
        if remedy := remedy_for(error, body):
            return remedy
        if isinstance(error, SyntaxError):
            return f"its syntax may need another Python: it was packed with Python {body.python}"
        if not isinstance(error, ImportError | AttributeError | TypeError):
            return "code at the top level of its file fails there: move into the function what needs your machine"
    return versions


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
