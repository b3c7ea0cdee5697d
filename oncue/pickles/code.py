"""Pickle code objects, with the Python version that their bytecode fits."""

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
    """Placeholder of a set in a pickle, with ordered items; unpickled as that set."""

    def __init__(self, of: set[Any] | frozenset[Any]) -> None:
        self.of = of

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.of), (sorted(self.of, key=repr),)


def reduced(code: types.CodeType) -> Any:
    """Return the reduced code, with its file's name and ordered sets of strings.

    cloudpickle does neither. Tracebacks show the name; ordered sets make the bytes reproducible.
    """
    consts = tuple(Ordered(c) if type(c) is frozenset else c for c in code.co_consts)
    # A code object accepts any consts; this one is only pickled, never run.
    _, given = cp._code_reduce(code.replace(co_consts=consts) if consts != code.co_consts else code)
    name = short_name(code.co_filename)
    fields = [name if type(x) is str and x in (_CLOUDPICKLES_NAME, code.co_filename) else x for x in given]
    return made, (PYTHON, *fields)


def made(python: str, *fields: Any) -> types.CodeType:
    """Build a code object. Raises OtherPython for bytecode that may crash."""
    if python != PYTHON:
        raise OtherPython(
            f"it holds bytecode of Python {python}, which this Python {PYTHON} ({sys.executable}) cannot run",
            remedy=f"use Python {python} here, or {PYTHON} there",
            python=python,
        )
    return types.CodeType(*fields)


def names_used(code: types.CodeType) -> set[str]:
    """Return global names and attributes that the code and its inner code use."""
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= names_used(const)
    return names


def short_name(filename: str) -> str:
    """Return the name of a code object's file, without its folder.

    IPython names a notebook's cell /tmp/ipykernel_PID/HASH.py or <ipython-input-NUMBER-HASH>; only
    HASH, that of its text, is kept.
    """
    cell = _CELL.search(filename)
    if cell is not None:
        return f"<notebook cell {cell[1]}>"
    return os.path.basename(filename) if not filename.startswith("<") else filename
