"""Files sent with a function, importable while that function runs.

Two functions may each bring a `settings.py`. A set of files is activated as a whole, between tasks
when the function changes: its modules are then in sys.modules, and the next set replaces them.
Modules of an installed package with the same name are restored after that. Sets with equal content
are one set, so functions of one file share its modules.

The files lie in a folder named by their content, which is first on sys.path while the set is
active. So `__file__` names a real file, data files lie beside the modules, and child processes
(`multiprocessing` with `spawn`, `forkserver`) import the same modules.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.abc
import importlib.machinery
import linecache
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

ROOT_VARIABLE = "ONCUE_FILES"  # names the folder with the sets' folders
KEPT_S = 7 * 86_400.0  # a set's folder stays at least so long after its last use


_suffixes = tuple(importlib.machinery.all_suffixes())


def _top_module(path: str) -> str:
    """Return the top-level module that a file is, or is part of; "" for a data file."""
    if not path.endswith(_suffixes):
        return ""
    return path.split("/")[0].split(".")[0]


class SiblingSet:
    """Files sent with a function, and the modules made of them."""

    def __init__(self, names: Sequence[str], folder: str) -> None:
        self.names = tuple(names)  # relative paths
        self.folder = folder
        self.modules: dict[str, types.ModuleType] = {}  # while the set is not active
        self.displaced: dict[str, types.ModuleType] = {}  # while it is active
        self.tops = frozenset(filter(None, map(_top_module, names)))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the active set's modules, before any other finder."""

    active: SiblingSet

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.active.tops:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [self.active.folder], target)


_NONE = SiblingSet((), "")
_finder = _Finder()
_finder.active = _NONE
_sets: dict[str, SiblingSet] = {}


def sibling_set(files: Mapping[str, bytes]) -> SiblingSet:
    """Return the only set with this content; write its files. Raises OSError."""
    if not files:
        return _NONE
    key = hashlib.sha256(msgspec.msgpack.encode(sorted(files.items()))).hexdigest()[:32]
    found = _sets.get(key)
    if found is None:
        found = _sets[key] = SiblingSet(tuple(files), os.path.join(root(), key))
    _write(files, found.folder)
    return found


def active_folder() -> str:
    """Return the folder of the active set; "" without one."""
    return _finder.active.folder


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
    if active.folder in sys.path:
        sys.path.remove(active.folder)
    if wanted.folder:
        sys.path.insert(0, wanted.folder)


def _pop_modules(tops: frozenset[str]) -> dict[str, types.ModuleType]:
    if not tops:
        return {}
    names = [n for n in sys.modules if n.split(".", 1)[0] in tops]
    return {n: sys.modules.pop(n) for n in names}


# ---------------------------------------------------------------- on disk


@functools.cache
def root() -> str:
    """Return the folder of the sets' folders: the worker's, else one of this process."""
    given = os.environ.get(ROOT_VARIABLE, "")
    if not given:
        given = tempfile.mkdtemp(prefix="oncue-files-")
        atexit.register(shutil.rmtree, given, ignore_errors=True)
    return given


def _write(files: Mapping[str, bytes], folder: str) -> None:
    """Write the files; those that are there with the same content stay."""
    for name, content in files.items():
        if os.path.isabs(name) or ".." in name.split("/"):
            raise OSError(f"the file {name!r} would be outside of the function's folder")
        write_file(Path(folder, name), content)
    with contextlib.suppress(OSError):
        os.utime(folder)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that other workers may read or write now. Raises OSError."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)


def remove_old(folders: Path, now_s: float | None = None) -> None:
    """Remove folders of sets that were not loaded lately."""
    oldest = (time.time() if now_s is None else now_s) - KEPT_S
    with contextlib.suppress(OSError):
        for folder in list(folders.iterdir()):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- lines in tracebacks


def show(filename: str, text: str) -> None:
    """Let tracebacks and inspect.getsource find lines of a file from elsewhere."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


def short_path(filename: str) -> str:
    """Return a file's path as its author knows it, without the set's folder."""
    start = root() + "/"
    if filename.startswith(start):
        return filename.removeprefix(start).partition("/")[2] or filename
    return filename
