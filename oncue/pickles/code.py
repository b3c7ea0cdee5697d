"""Code objects: bytecode, which fits one minor version of Python only, and says which."""

from __future__ import annotations

import os
import re
import sys
import types
from typing import Any

from cloudpickle import cloudpickle as cp

from oncue.errors import OtherPython

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_CELL = re.compile(r"(?:ipykernel_\d+[/\\]|<ipython-input-\d+-)(\w+)(?:\.py|>)$")
_CLOUDPICKLES_NAME = "<dynamic-code>"


class Ordered:
    """Stands for a set in a pickle; comes back as that set."""

    def __init__(self, of: set[Any] | frozenset[Any]) -> None:
        self.of = of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.of), (sorted(self.of, key=repr),)


def reduced(code: types.CodeType) -> Any:
    """As cloudpickle does it, but with the file's name, so that a traceback tells it; sets of texts in order."""
    consts = tuple(Ordered(c) if type(c) is frozenset else c for c in code.co_consts)
    # A code object takes any consts; these are only pickled, never run.
    _, given = cp._code_reduce(code.replace(co_consts=consts) if consts != code.co_consts else code)
    name = short_name(code.co_filename)
    fields = [name if type(x) is str and x in (_CLOUDPICKLES_NAME, code.co_filename) else x for x in given]
    return made, (PYTHON, *fields)


def made(python: str, *fields: Any) -> types.CodeType:
    """Raises OtherPython: to make it would be to crash, at once or when it is run."""
    if python != PYTHON:
        raise OtherPython(
            f"it holds bytecode of Python {python}, which this Python {PYTHON} ({sys.executable}) cannot run",
            remedy=f"use Python {python} here, or {PYTHON} there",
            python=python,
        )
    return types.CodeType(*fields)


def names_used(code: types.CodeType) -> set[str]:
    """Global names (and attributes) that the code and the functions inside it mention."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= names_used(const)
    return names


def short_name(filename: str) -> str:
    """A code's file without the folder it happened to be in. Of a notebook's cell the hash of its text, without the process or
    the number of the run that IPython names it by as well: /tmp/ipykernel_PID/HASH.py, <ipython-input-NUMBER-HASH>."""
    cell = _CELL.search(filename)
    if cell is not None:
        return f"<notebook cell {cell[1]}>"
    return os.path.basename(filename) if not filename.startswith("<") else filename
