"""Finds conditions of `match` that no event of a file trigger can fulfil.

Its paths are relative to the watched folder and never begin with a slash.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from oncue.globs import never_relative
from oncue.strict_yaml.document import Node, Problems

_TEXTS = ("glob", "prefix", "eq", "in")


def relative_paths(options: Any) -> frozenset[str]:
    """Return the event paths with values relative to the trigger's folder.

    `options` is the trigger's option Struct.
    """
    return frozenset(getattr(options, "RELATIVE", ()))


def check_relative(match: Node, on: Node | None, triggers: Mapping[str, frozenset[str]], problems: Problems) -> None:
    """Add a problem for each impossible condition.

    `triggers`: name -> its relative paths.

    Nothing is added if `on` also accepts other events: the condition may concern those.
    """
    given = on.plain() if on else None
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    found = [triggers.get(name, frozenset()) for name in names if isinstance(name, str)]
    if found:
        _check_all(match, frozenset.intersection(*found), problems)


def _check_all(match: Node, paths: Collection[str], problems: Problems) -> None:
    """Check one mapping. Conditions under `not` always hold and are skipped."""
    if not isinstance(match.value, dict):
        return
    for key, node in match.value.items():
        if key in ("any", "all"):
            for member in _several(node):
                _check_all(member, paths, problems)
        elif key in paths:
            _check(key, "", node, problems)


def _check(path: str, op: str, node: Node, problems: Problems) -> None:
    value: Any = node.value
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _TEXTS or key in ("any", "all"):
                _check(path, key, inner, problems)
    elif isinstance(value, list):
        for inner in value:
            _check(path, op, inner, problems)
    elif isinstance(value, str) and (rest := never_relative(value)) is not None:
        what = f"the {op} {value!r}" if op in ("glob", "prefix") else repr(value)
        problems.add(
            node,
            f"{path}: {what} never holds: it is relative to the trigger's folder",
            f"leave out what is before {rest!r}" if rest else "leave this condition out",
        )


def _several(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else [node]
