"""The lines of functions that travel by value, so that tracebacks show them where their file is not: each file's lines at their
numbers, all others blank. A script, a notebook's cells (which no file has anywhere) and what they reach."""

from __future__ import annotations

import inspect
import linecache
import tokenize
import types
from collections.abc import Iterable, Mapping

from oncue.pickles import short_name

Entry = tuple[int, None, list[str], str]  # as linecache keeps them


def lines_of(codes: Iterable[types.CodeType]) -> dict[str, str]:
    """By the name that the code has where it is loaded."""
    files: dict[str, dict[int, str]] = {}
    for code in codes:
        lines = files.setdefault(short_name(code.co_filename), {})
        if code.co_firstlineno not in lines:  # what is inside of another function is there with it
            lines.update(enumerate(_block(code), code.co_firstlineno))
    return {name: _text(lines) for name, lines in sorted(files.items()) if lines}


def _block(code: types.CodeType) -> list[str]:
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        return inspect.getblock(lines) if lines else []
    except (SyntaxError, tokenize.TokenError, IndentationError):  # the file was edited since
        return []


def _text(lines: dict[int, str]) -> str:
    return "".join(lines.get(n, "\n") for n in range(1, max(lines) + 1))


def entries(files: Mapping[str, str]) -> dict[str, Entry]:
    """For linecache: these are of no file, and it need not look whether that has changed."""
    return {name: (len(text), None, text.splitlines(keepends=True), name) for name, text in files.items()}
