"""Options of a function: files that travel with it, and how its tasks are run.

    @oncue.function(files=["flat.tif"], memory="2GB")
    def reconstruct(path): ...

The decorator returns the function itself. The options are an attribute of it, as plain data, so
that they travel in pickles of any version.
"""

from __future__ import annotations

import glob
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import msgspec

from oncue.errors import CannotPack, Invalid
from oncue.protocol.run_options import NO_OPTIONS, Resources, RunOptions
from oncue.protocol.stated_options import run_options
from oncue.quantities import size_bytes

_ATTRIBUTE = "__oncue__"
F = TypeVar("F", bound=Callable[..., Any])


class FunctionOptions(NamedTuple):
    """Options of a function."""

    fresh: bool = False
    memory_bytes: int = 0
    detached: bool = False
    files: tuple[str, ...] = ()  # paths or globs, relative to the function's file
    # The fields of RunOptions, as plain data.
    resources: tuple[int, ...] = ()
    sandbox: int = 0
    outputs: tuple[str, ...] = ()

    @property
    def run(self) -> RunOptions | None:
        """Run options; None if nothing is stated."""
        found = RunOptions(Resources(*self.resources), self.sandbox, self.outputs)
        return None if found == NO_OPTIONS else found

    def with_run(self, run: RunOptions | None) -> FunctionOptions:
        """Return these options with run options in place of theirs."""
        if run is None:
            return self
        fields = msgspec.structs.astuple(run.resources)
        return self._replace(resources=fields, sandbox=run.sandbox, outputs=run.outputs)

    def merged(self, others: FunctionOptions | None) -> FunctionOptions:
        """Return these options with others added."""
        if others is None:
            return self
        return FunctionOptions(
            self.fresh or others.fresh,
            others.memory_bytes or self.memory_bytes,
            self.detached or others.detached,
            tuple(dict.fromkeys((*self.files, *others.files))),
            others.resources or self.resources,
            others.sandbox or self.sandbox,
            others.outputs or self.outputs,
        )


@overload
def function(fn: F, /) -> F: ...
@overload
def function(
    *,
    fresh: bool = False,
    memory: str | int = 0,
    detached: bool = False,
    files: Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
    sandbox: bool | str = False,
    outputs: Sequence[str] = (),
) -> Callable[[F], F]: ...
def function(
    fn: Any = None,
    /,
    *,
    fresh: bool = False,
    memory: str | int = 0,
    detached: bool = False,
    files: Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
    sandbox: bool | str = False,
    outputs: Sequence[str] = (),
) -> Any:
    """Set options of a function that oncue runs; call it as before.

    `fresh`: each task in a process that has run nothing else. `memory`: a task that uses more, with
    its child processes, ends with MemoryError ("2GB", or bytes). `detached`: child processes may
    outlive the task. `files`: data files and compiled modules that travel with it; paths or globs,
    relative to the function's file.

    `resources`: cores, memory, gpus, nodes, ranks, walltime that a task needs. `sandbox`: each task
    in a folder of its own; "keep": it stays if the task fails. `outputs`: globs of files in it that
    come back. Raises Invalid.
    """
    options = options_of(fresh=fresh, memory=memory, detached=detached, files=files)
    options = options.with_run(run_options(resources, sandbox, outputs))

    def mark(marked: Any) -> Any:
        if not callable(marked):
            raise Invalid(f"oncue.function is given {marked!r}", remedy="write @oncue.function(fresh=True)")
        setattr(marked, _ATTRIBUTE, options._asdict())
        return marked

    return mark if fn is None else mark(fn)


def options_of(*, fresh: bool, memory: str | int, detached: bool, files: Sequence[str]) -> FunctionOptions:
    """Check options. Raises Invalid."""
    try:
        memory_bytes = size_bytes(memory)
    except ValueError as e:
        raise Invalid(f"memory: {e}", remedy='for example memory="2GB"') from None
    if isinstance(files, str):
        files = [files]
    return FunctionOptions(bool(fresh), memory_bytes, bool(detached), tuple(str(f) for f in files))


def marked_options(*functions: Any) -> FunctionOptions:
    """Return the options of the first that has some."""
    for fn in functions:
        found = getattr(fn, _ATTRIBUTE, None)
        if isinstance(found, dict):
            known = {name: value for name, value in found.items() if name in FunctionOptions._fields}
            return FunctionOptions(**known)
    return FunctionOptions()


def read_files(patterns: Sequence[str], base: Path, root: Path, label: str) -> dict[str, bytes]:
    """Read the files that patterns name.

    Return their content by path relative to `root`. Patterns are relative to `base`; a folder
    stands for all files in it. Raises CannotPack.
    """
    found: dict[str, bytes] = {}
    for pattern in patterns:
        paths = _matching(pattern, base)
        if not paths:
            raise CannotPack(
                f"{label} names the file {pattern!r}, which {base} does not have",
                remedy="the path is relative to the function's file; globs such as data/*.csv are possible",
            )
        for path in paths:
            try:
                relative = path.relative_to(root).as_posix()
                found[relative] = path.read_bytes()
            except ValueError:
                raise CannotPack(
                    f"{label} names the file {pattern!r}, which is outside of {root}",
                    remedy="files travel from the function's folder and below; pass others as arguments",
                ) from None
            except OSError as e:
                raise CannotPack(f"{label}: {path} cannot be read: {e.strerror}", remedy="check the file") from None
    return found


def _matching(pattern: str, base: Path) -> list[Path]:
    found = sorted(glob.glob(os.path.normpath(base / pattern), recursive=True))
    paths = [Path(p) for p in found]
    inside = [f for p in paths if p.is_dir() for f in sorted(p.rglob("*")) if "__pycache__" not in f.parts]
    return [p for p in dict.fromkeys([*paths, *inside]) if p.is_file()]


def source_file(under: Any) -> str:
    """Return the file that defines a function or class.

    It is "" for one of a notebook or prompt.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(under)) or ""
    except (TypeError, ValueError, OSError):
        return ""
    return os.path.abspath(file) if os.path.isfile(file) else ""


def function_folder(under: Any) -> Path:
    """Return the folder to which `files` are relative.

    It is the function's; for one of a notebook or prompt the working directory.
    """
    file = source_file(under)
    return Path(file).parent if file and "ipykernel_" not in file else Path.cwd()


def files_state(fn: Any) -> list[tuple[str, int, int]]:
    """Return paths, times and sizes of a function's files.

    If they differ, the files have changed.
    """
    patterns = marked_options(fn).files
    if not patterns:
        return []
    base = function_folder(fn)
    found = []
    for path in (p for pattern in patterns for p in _matching(pattern, base)):
        at = path.stat()
        found.append((str(path), at.st_mtime_ns, at.st_size))
    return found
