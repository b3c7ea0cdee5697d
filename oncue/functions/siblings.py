"""Modules sent with a function, importable while that function runs.

Two functions may each bring a `settings.py`. A set of files is activated as a whole, between tasks
when the function changes: its modules are then in sys.modules, and the next set replaces them.
Modules of an installed package with the same name are restored after that. Sets with equal content
are one set, so functions of one file share its modules.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import linecache
import sys
import types
from collections.abc import Mapping, Sequence

import msgspec


class SiblingSet:
    """Files sent with a function, and the modules made of them."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)
        #: Module name -> relative path; "" for a folder without __init__.py.
        self.paths: dict[str, str] = {}
        self.modules: dict[str, types.ModuleType] = {}  # while the set is not active
        self.displaced: dict[str, types.ModuleType] = {}  # while it is active
        for path in files:
            parts = path.removesuffix(".py").split("/")
            if parts[-1] == "__init__":
                parts.pop()
            for depth in range(1, len(parts)):
                self.paths.setdefault(".".join(parts[:depth]), "")
            self.paths[".".join(parts)] = path
        self.tops = frozenset(name.split(".")[0] for name in self.paths)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    active: SiblingSet

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        relative = self.active.paths.get(fullname)
        if relative is None:
            return None
        package = relative == "" or relative.endswith("__init__.py")
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=relative or None, is_package=package)
        spec.loader_state = relative
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        relative = module.__spec__.loader_state
        if not relative:
            return
        module.__file__ = relative
        show(relative, self.active.files[relative])
        exec(compile(self.active.files[relative], relative, "exec", dont_inherit=True), module.__dict__)

    def get_source(self, fullname: str) -> str | None:
        return self.active.files.get(self.active.paths.get(fullname, ""))


_NONE = SiblingSet({})
_finder = _Finder()
_finder.active = _NONE
_sets: dict[str, SiblingSet] = {}


def sibling_set(files: Mapping[str, str]) -> SiblingSet:
    """Return the only set with this content."""
    if not files:
        return _NONE
    key = hashlib.sha256(msgspec.msgpack.encode(sorted(files.items()))).hexdigest()
    return _sets.setdefault(key, SiblingSet(files))


def activate(wanted: SiblingSet) -> None:
    """Make a set's modules importable, in place of those of the active set.

    Cheap if the set is active already.
    """
    active = _finder.active
    if wanted is active:
        return
    active.modules = _pop_modules(active.tops)
    sys.modules.update(active.displaced)
    wanted.displaced = _pop_modules(wanted.tops)
    sys.modules.update(wanted.modules)
    _finder.active = wanted
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    show_all(wanted.files)


def _pop_modules(tops: frozenset[str]) -> dict[str, types.ModuleType]:
    if not tops:
        return {}
    names = [n for n in sys.modules if n.split(".", 1)[0] in tops]
    return {n: sys.modules.pop(n) for n in names}


def show(filename: str, text: str) -> None:
    """Let tracebacks and inspect.getsource find lines of a file from elsewhere."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


def show_all(files: Mapping[str, str]) -> None:
    for filename, text in files.items():
        show(filename, text)
