"""Variables of rule files: `${var:name}` is replaced before the file is parsed.

    endpoint: "${var:endpoint}"            the value, with its type: a text, a number, a list ...
    path: "/data/${var:beamline}/raw"      text
    "$${var:x}"                            these characters, as in templates

Each value stands on its line, so errors of the parser name the lines of the file. A variable
without a value is left: the parser reports it, with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from oncue.strict_yaml.document import Node, Problems, scalars

MARK = "${var:"
NAME = r"[A-Za-z_][\w.-]*"
_REFERENCE = re.compile(rf"(?<!\$)\$\{{var:({NAME})\}}")
_BLOCKS = frozenset("|>")
_NO_VALUE = "give it a value: --set {0}=VALUE, or `{0}: VALUE` in a file of --env"


def fill(text: str, values: Mapping[str, Any], problems: Problems) -> tuple[str, set[str]]:
    """Return the text with its variables replaced, and their names.

    Text that is not YAML stays as it is.
    """
    used: set[str] = set()
    if MARK not in text:
        return text, used
    made: list[str] = []
    at = 0
    for scalar in scalars(text):
        if MARK not in scalar.value:
            continue
        raw = text[scalar.start : scalar.end]
        names = [name for name in _REFERENCE.findall(scalar.value) if name in values]
        if not names:
            continue
        used.update(names)
        place = (scalar.line, scalar.column)
        if scalar.style in _BLOCKS:
            made += [text[at : scalar.start], _block(raw, values, place, problems)]
        else:
            if "\n" in raw:
                problems.add(place, "a text with a variable is on one line", "or in a block: `key: |`")
            made += [text[at : scalar.start], _flow(scalar.value, values, place, problems)]
        at = scalar.end
    return "".join([*made, text[at:]]), used


def _flow(value: str, values: Mapping[str, Any], place: tuple[int, int], problems: Problems) -> str:
    """Return a plain or quoted text with its variables replaced, as YAML on one line."""
    whole = _REFERENCE.fullmatch(value)
    return as_yaml(values[whole[1]] if whole else _replaced(value, values, place, problems))


def _block(raw: str, values: Mapping[str, Any], place: tuple[int, int], problems: Problems) -> str:
    """Return a block of lines with its variables replaced."""
    filled = _replaced(raw, values, place, problems)
    if filled.count("\n") != raw.count("\n"):
        problems.add(place, "a value with several lines cannot stand in a block of lines", "give it one line")
    return filled


def _replaced(text: str, values: Mapping[str, Any], place: tuple[int, int], problems: Problems) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            return found[0]
        given = values[found[1]]
        if isinstance(given, str):
            return given
        if isinstance(given, list | dict) or given is None:
            problems.add(place, f"the variable {found[1]} is no text or number", "it can only stand alone")
        return json.dumps(given)

    return _REFERENCE.sub(value, text)


def as_yaml(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return a value as YAML on one line: JSON, with escapes that YAML has as well.

    `default`: makes plain values of others. Raises TypeError, ValueError.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=default)
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def check_filled(text: str | bytes, root: Node, problems: Problems) -> None:
    """Add a problem for each variable that has no value."""
    if (MARK not in text) if isinstance(text, str) else (MARK.encode() not in text):
        return
    for node in _texts(root):
        for name in dict.fromkeys(_REFERENCE.findall(node.value)):
            problems.add(node, f"the variable {name} has no value", _NO_VALUE.format(name))


def _texts(node: Node) -> Iterator[Node]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node.value, str):
            yield node
        elif isinstance(node.value, dict):
            waiting += node.value.values()
            waiting += [Node(key, *node.at_key(key)) for key in node.value if MARK in key]
        elif isinstance(node.value, list):
            waiting += node.value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted names, as `site` and `site.endpoint`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[prefix + name] = value
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
    return found
