"""Structure of the package: no import circles, small files, small folders, short functions."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "oncue"
FILE_LINES, FUNCTION_LINES, FOLDER_FILES, ROOT_MODULES = 450, 58, 25, 12


@cache
def trees() -> dict[str, tuple[Path, ast.Module]]:
    """Return each module's file and syntax tree, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = (path, ast.parse(path.read_text()))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, also in functions and for type checking."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{a.name}" for a in node.names}
            found |= children & trees().keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & trees().keys()


def test_no_module_imports_in_a_circle() -> None:
    graph = {name: imports(tree) - {name} for name, (_, tree) in trees().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        raise AssertionError(f"import circle: {' -> '.join(e.args[1])}") from None


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path, _ in trees().values()}
    assert not {name: count for name, count in lines.items() if count > FILE_LINES}


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


def test_folders_are_small() -> None:
    folders: dict[Path, int] = {}
    for path, _ in trees().values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert not {str(f.relative_to(ROOT)): n for f, n in folders.items() if n > FOLDER_FILES}
    assert folders[PACKAGE] <= ROOT_MODULES, "modules at the root"


def test_only_packages_re_export() -> None:
    """A name has one home: whoever uses it imports it from there."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {alias.name}"
        for path, tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and path.name != "__init__.py"
        for alias in node.names
        if alias.asname == alias.name
    ]
    assert not found
