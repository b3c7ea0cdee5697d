"""Pack functions named as `file.py:name`. The file is imported: its code runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import linecache
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oncue.errors import CannotImport, CannotPack, Invalid
from oncue.functions.body import Packed
from oncue.functions.declared_rules import DeclaredRule, collecting
from oncue.functions.options import FunctionOptions
from oncue.functions.pack import pack_function
from oncue.functions.signature import names_in_text, parameters_in_text
from oncue.functions.source import local_files
from oncue.protocol.records import Parameter

_loading = threading.RLock()  # guards sys.path and sys.modules


def split_place(text: str) -> tuple[str, str]:
    """Return (file, name) of `file.py:name`. Raises Invalid, with the likely remedy."""
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py") and all(part.isidentifier() for part in name.split(".")):
        return file, name
    remedy = "for example tomo.py:reconstruct"
    if text.endswith(".py"):
        remedy = f"add the function's name, as in {text}:NAME"
    elif ".ipynb" in text:
        remedy = "a notebook's functions are sent from the notebook: client.submit, client.register"
    elif file.endswith(".py"):
        remedy = "after the colon comes the function's name alone, without parentheses or arguments"
    elif colon and file:
        remedy = f"did you mean {file.replace('.', '/')}.py:{name}?"
    raise Invalid(f"{text!r} is not file.py:name", remedy=remedy)


def pack_file(path: Path | str, name: str, options: FunctionOptions | None = None) -> Packed:
    """Pack the function `file.py:name`.

    The file is imported (its code runs here) under the name it would have for a script beside it.
    sys.modules and sys.path are restored after that. `options` are added to those of the function.
    Raises CannotPack: no such file or name, or the file fails to import (where and why).
    """
    path = _file(path)
    with _imported(path) as module:
        return pack_function(_named(module, name, path), options=options)


def parameters_in_file(path: Path | str, name: str) -> tuple[tuple[Parameter, ...] | None, str]:
    """Return (parameters of `file.py:name`, import error).

    The parameters are None if unknown. If the file cannot be imported, for example because a
    package is not installed here, they are read from its text, and the import error says why; else
    that is "". Raises CannotPack as `pack_file` does for other errors.
    """
    path = _file(path)
    try:
        with _imported(path) as module:
            return pack_function(_named(module, name, path)).parameters, ""
    except CannotImport as e:
        if isinstance(e.__cause__, SyntaxError):
            raise
        text = path.read_text(encoding="utf-8")
        own = names_in_text(text)
        if own is not None and name.split(".")[0] not in own:
            raise _no_such(path, name, own) from None
        return parameters_in_text(text, name), e.message


def import_root(path: Path | str) -> Path:
    """Return the folder to import the file from: its own, or its package's parent."""
    root = Path(path).absolute().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def _file(path: Path | str) -> Path:
    path = Path(path).absolute()
    if path.is_dir():
        raise CannotPack(f"{path} is a folder", remedy=f"name a file in it: {_python_files(path)}", file=str(path))
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"its folder has: {_python_files(path.parent)}"
        if not path.parent.is_dir():
            remedy = f"there is no folder {path.parent} either"
        raise CannotPack(f"there is no file {path}", remedy=remedy, file=str(path))
    dotted = next((p for p in (path.with_suffix(""), *path.parents) if "." in p.name and _is_module(p)), None)
    if dotted is not None:
        raise CannotPack(
            f"{path} cannot be imported by its name: {dotted.name!r} has a dot, which separates a package from its module",
            remedy=f"rename it, for example to {dotted.name.replace('.', '_')!r}",
            file=str(path),
        )
    return path


def _is_module(path: Path) -> bool:
    return path.with_name(path.name + ".py").is_file() or (path / "__init__.py").is_file()


def _python_files(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.glob("*.py"))[:10]) or "no Python files"


def _named(module: types.ModuleType, name: str, path: Path) -> Any:
    found: Any = module
    for i, part in enumerate(parts := name.split(".")):
        inner = getattr(found, part, None)
        if inner is None:
            own = [k for k, v in vars(found).items() if callable(v) and not k.startswith("_")]
            raise _no_such(path, name, [".".join([*parts[:i], k]) for k in own])
        found = inner
    return found


def _no_such(path: Path, name: str, own: list[str]) -> CannotPack:
    near = difflib.get_close_matches(name, own, n=1)
    return CannotPack(
        f"{path} has no {name!r}",
        remedy=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(own) or 'no functions'}",
        file=str(path),
    )


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[types.ModuleType]:
    root = import_root(path)
    dotted = ".".join(path.relative_to(root).with_suffix("").parts)
    with _loading:
        before, old_path = dict(sys.modules), list(sys.path)
        _hide_same_names(root, dotted)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
        linecache.checkcache()
        try:
            yield _import(dotted, path)
        finally:
            sys.path[:] = old_path
            for name in list(sys.modules):  # a list: local_files() imports modules itself
                if name not in before and local_files(name.split(".")[0]):
                    sys.modules.pop(name, None)
            sys.modules.update(before)


def declared_in_file(path: Path) -> list[DeclaredRule]:
    """Return the rules above the functions of a Python file. Raises CannotImport."""
    path = path.absolute()
    with collecting() as found, _imported(path):
        return [rule for rule in found if rule.file == str(path)]


def _hide_same_names(root: Path, dotted: str) -> None:
    """Remove modules from sys.modules whose names files of this folder have.

    The folder's own files are imported instead.
    """
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
        raise CannotImport(
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
