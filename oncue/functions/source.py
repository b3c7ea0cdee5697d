"""Source that a function needs: part of its file, and other files of its user."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES)
Files = dict[str, str]  # relative path -> source


def text_of(module_name: str) -> str:
    """Return the source of an imported module or of the script.

    It is "" without a source file (notebook, prompt, C extension).
    """
    path = getattr(sys.modules.get(module_name), "__file__", None)
    return _read(Path(path)) if path and path.endswith(".py") else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


# ---------------------------------------------------------------- whose file is it?


@functools.cache
def _installed_roots() -> tuple[str, ...]:
    paths = {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    return tuple(str(Path(p).resolve()) + "/" for p in (*paths, site.getusersitepackages()) if p)


def installed(path: Path) -> bool:
    """True if a file came with Python or pip: the worker is expected to have it."""
    return (
        "site-packages" in path.parts
        or "dist-packages" in path.parts
        or str(path.resolve()).startswith(_installed_roots())
    )


def local_files(name: str) -> dict[str, Path]:
    """Return the files that make the user's own module `name` importable.

    This includes the __init__.py of its packages. {} for a module that is installed, built in or
    not found. Imports nothing.
    """
    parts = name.split(".")
    file, package = _own_place(parts[0])
    if package is None:
        return {file.name: file} if file is not None and file.suffix == ".py" else {}
    root, found = package.parent, {}
    for depth in range(1, len(parts) + 1):
        folder = root.joinpath(*parts[:depth])
        init, plain = folder / "__init__.py", folder.with_suffix(".py")
        path = init if init.is_file() else plain
        if path.is_file():
            found[path.relative_to(root).as_posix()] = path
    return found


def compiled_file(name: str) -> Path | None:
    """Return the file of the user's own compiled module `name`; None if it is none."""
    parts = name.split(".")
    file, package = _own_place(parts[0])
    if package is None:
        return file if file is not None and file.name.endswith(_COMPILED) else None
    stem = package.parent.joinpath(*parts)
    found = (stem.with_name(stem.name + suffix) for suffix in _COMPILED)
    return next((path for path in found if path.is_file()), None)


def _own_place(top: str) -> tuple[Path | None, Path | None]:
    """Return (file, package folder) of a top-level module of the user's: one is None.

    Both are for a module that is installed, built in or not found.
    """
    if not top or top in sys.stdlib_module_names or top in ("oncue", "__main__"):
        return None, None
    spec = _spec(top)
    if spec is None:
        return None, None
    folders = spec.submodule_search_locations
    places = [spec.origin] if folders is None else list(folders)
    place = Path(places[0]) if places and places[0] else None
    if place is None or installed(place):
        return None, None
    return (place, None) if folders is None else (None, place)


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None)
    if spec is not None or module is not None:
        return spec
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None


# ---------------------------------------------------------------- what does it import?


def imported(text: str, package: str) -> list[str]:
    """Return the names of modules imported anywhere in the text.

    `from x import y` also gives x.y, because y may be a module.
    """
    names: list[str] = []
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*up, base] if base else up)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")]
    return [n for n in names if n]


class Contents(NamedTuple):
    """Source files and modules that a function needs."""

    siblings: Files  # the user's own
    requires: tuple[str, ...]  # top-level modules, neither own nor of the standard library
    compiled: dict[str, Path]  # the user's own compiled modules


def collect_files(names: Iterable[str], text: str = "", package: str = "") -> Contents:
    """Return the files and modules of `names` and of imports in `text`.

    Imports are followed through own files.
    """
    files: Files = {}
    requires: set[str] = set()
    compiled: dict[str, Path] = {}
    todo = [*names, *imported(text, package)]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        own = local_files(name)
        top = name.split(".")[0]
        if (path_of_compiled := compiled_file(name)) is not None:
            compiled[name] = path_of_compiled
        elif (
            not own
            and top not in sys.stdlib_module_names
            and top not in ("oncue", "cloudpickle", "__main__", "__mp_main__")
        ):
            requires.add(top)
        for relative, path in own.items():
            if relative not in files:
                files[relative] = _read(path)
                dotted = relative.removesuffix(".py").replace("/", ".")
                is_package = dotted.endswith(".__init__") or dotted == "__init__"
                home = dotted.removesuffix(".__init__") if is_package else dotted.rpartition(".")[0]
                todo += imported(files[relative], home)
    own_tops = {f.split("/")[0].removesuffix(".py") for f in files}
    return Contents(dict(sorted(files.items())), tuple(sorted(requires - own_tops)), compiled)


# ---------------------------------------------------------------- the part that a function needs


def part_for(text: str, roots: set[str]) -> str:
    """Return the top-level statements that `roots` need, directly or indirectly.

    Each statement keeps its line numbers, for tracebacks; all other lines are blank. Statements
    under `if __name__ == "__main__"` and bare calls are left out: rebuilding a function must not
    run its author's script.
    """
    statements = [s for s in parsed(text).body if not _is_main_guard(s)]
    needed, included = set(roots), set()
    grew = True
    while grew:
        grew = False
        for i, s in enumerate(statements):
            if i not in included and (bound_names(s) & needed or _always(s)):
                included.add(i)
                needed |= {n.id for n in ast.walk(s) if isinstance(n, ast.Name)}
                grew = True
    keep: set[int] = set()
    for i in included:
        s = statements[i]
        decorators = getattr(s, "decorator_list", [])
        keep.update(range(min([s.lineno, *(d.lineno for d in decorators)]), (s.end_lineno or s.lineno) + 1))
    lines = text.splitlines()
    kept = [line if n in keep else "" for n, line in enumerate(lines, 1)]
    return "\n".join(kept).rstrip() + "\n" if keep else ""


def parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # not Python: no imports, no parts
        return ast.Module(body=[], type_ignores=[])


def _is_main_guard(s: ast.stmt) -> bool:
    return isinstance(s, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(s.test))


def _always(s: ast.stmt) -> bool:
    star = isinstance(s, ast.ImportFrom) and any(a.name == "*" for a in s.names)
    return star or (isinstance(s, ast.ImportFrom) and s.module == "__future__")


def bound_names(s: ast.stmt) -> set[str]:
    """Return the names that a statement binds."""
    if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {s.name}
    if isinstance(s, ast.Expr):
        return set()
    names = {n.id for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for n in ast.walk(s):
        if isinstance(n, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in n.names}
        elif isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(n.name)
    return names
