"""Names of nodes in a scheduler's short form: n[1-3,7],gpu01."""

from __future__ import annotations

import re

_MOST = 10_000
_PART = re.compile(r"[^,\[\]]*(?:\[[^\]]*\][^,\[\]]*)*")
_RANGE = re.compile(r"\[([^\]]*)\]")


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the names in the order given: `n[09-11],a` is n09, n10, n11, a."""
    names: list[str] = []
    for part in _PART.findall(text):
        if part:
            names += _expand(part)
    return tuple(names[:_MOST])


def _expand(part: str) -> list[str]:
    found = _RANGE.search(part)
    if found is None:
        return [part]
    names: list[str] = []
    for piece in found[1].split(","):
        first, _, last = piece.partition("-")
        if last and first.isdigit() and last.isdigit():
            numbers = range(int(first), min(int(last), int(first) + _MOST) + 1)
            names += [f"{n:0{len(first)}}" for n in numbers]
        else:
            names.append(piece)
    rest = _expand(part[found.end() :])
    return [part[: found.start()] + name + tail for name in names for tail in rest][:_MOST]
