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

from oncue.errors import CannotImport, CannotPack
from oncue.functions.body import Packed
from oncue.functions.pack import pack_function
from oncue.functions.signature import names_in_text, parameters_in_text
from oncue.functions.source import local_files
from oncue.protocol.records import Parameter

_loading = threading.RLock()  # guards sys.path and sys.modules


def pack_file(path: Path | str, name: str) -> Packed:
    """Pack the function `file.py:name`.

    The file is imported (its code runs here) under the name it would have for a script beside it.
    sys.modules and sys.path are restored after that.
    Raises CannotPack: no such file or name, or the file fails to import (where and why).
    """
    path = _file(path)
    with _imported(path) as module:
        return pack_function(_named(module, name, path))


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
    if not path.is_file():
        raise CannotPack(f"there is no file {path}", remedy="give the path of a Python file", file=str(path))
    return path


def _named(module: types.ModuleType, name: str, path: Path) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise _no_such(path, name, [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")])
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
