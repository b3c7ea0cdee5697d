"""Source lines of functions that are sent by value, for tracebacks.

The worker does not have the file: a script, or a notebook's cell, which is no file at all. Each
file's lines are kept at their numbers; all other lines are blank.
"""

from __future__ import annotations

import inspect
import linecache
import tokenize
import types
from collections.abc import Iterable, Mapping

from oncue.pickles import short_name

Entry = tuple[int, None, list[str], str]  # as linecache keeps them


def lines_of(codes: Iterable[types.CodeType]) -> dict[str, str]:
    """Return the lines of these code objects, by the file name that a worker sees."""
    files: dict[str, dict[int, str]] = {}
    for code in codes:
        lines = files.setdefault(short_name(code.co_filename), {})
        if code.co_firstlineno not in lines:  # inner functions come with their outer ones
            lines.update(enumerate(_block(code), code.co_firstlineno))
    return {name: _text(lines) for name, lines in sorted(files.items()) if lines}


def _block(code: types.CodeType) -> list[str]:
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:
        return inspect.getblock(lines) if lines else []
    except (SyntaxError, tokenize.TokenError, IndentationError):
        return []  # the file was edited after its import


def _text(lines: dict[int, str]) -> str:
    return "".join(lines.get(n, "\n") for n in range(1, max(lines) + 1))


def entries(files: Mapping[str, str]) -> dict[str, Entry]:
    """Return entries for linecache, without a time to check: there is no file."""
    return {name: (len(text), None, text.splitlines(keepends=True), name) for name, text in files.items()}
