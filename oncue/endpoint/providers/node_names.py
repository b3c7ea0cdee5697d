"""Names of nodes in a scheduler's short form: n[1-3,7],gpu01."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, product

_MOST = 10_000
_MOST_CHARS = 100_000
_MOST_RANGES = 8  # of one name
_MARK = re.compile(r"[\[\],]")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_RANGE = re.compile(r"\[([^\[\]]*)\]")


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the names in the order given: `n[09-11],a` is n09, n10, n11, a.

    Of very many names the first are returned, at a bounded cost.
    """
    parts = (part for part in _parts(text[:_MOST_CHARS]) if part)
    return tuple(islice((name for part in parts for name in _expand(part)), _MOST))


def _parts(text: str) -> Iterator[str]:
    """Yield what commas outside of brackets separate."""
    start, inside = 0, False
    for mark in _MARK.finditer(text):
        if mark[0] != ",":
            inside = mark[0] == "["
        elif not inside:
            yield text[start : mark.start()]
            start = mark.end()
    yield text[start:]


def _expand(part: str) -> Iterator[str]:
    pieces = _RANGE.split(part)  # text and ranges, in turn
    if len(pieces) > 2 * _MOST_RANGES:
        return iter([part])
    choices = [_numbers(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ("".join(chosen) for chosen in product(*choices))


def _numbers(ranges: str) -> list[str]:
    names: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        if last and _NUMBER.fullmatch(first) and _NUMBER.fullmatch(last):
            numbers = range(int(first), min(int(last), int(first) + _MOST) + 1)
            names += [f"{n:0{len(first)}}" for n in numbers]
        else:
            names.append(piece)
        if len(names) > _MOST:
            break
    return names
