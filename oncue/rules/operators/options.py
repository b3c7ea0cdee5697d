"""Parsers of operators' options in a rule file, and quantities in words."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from oncue.quantities import duration_ms, duration_text
from oncue.rules.matching.expression import Path, parse
from oncue.rules.matching.fields import Get, getter
from oncue.strict_yaml.document import Node, Problems

MAX_DURATION_MS = 30 * 86_400_000


def require(node: Node, name: str, example: str, options: Collection[str], problems: Problems) -> bool:
    """Return True if a mapping has these options; missing ones are problems."""
    missing = [option for option in options if option not in node.value]
    for option in missing:
        problems.add(node, f"`{name}` lacks the key {option!r}", f"{name}: {example}")
    return not missing


def duration(node: Node | None, name: str, problems: Problems) -> int:
    """Return milliseconds, more than 0 and at most 30 days.

    0 where the option is missing or wrong.
    """

    def parse(value: Any) -> int:
        found = duration_ms(value)
        if not 0 < found <= MAX_DURATION_MS:
            raise ValueError(f"it takes more than 0 and at most {duration_text(MAX_DURATION_MS)}")
        return found

    return positive(node, name, parse, problems)


def positive(node: Node | None, name: str, parse: Callable[[Any], int], problems: Problems) -> int:
    """Return `parse(value)`, more than 0; 0 where the option is missing or wrong."""
    if node is None:
        return 0
    try:
        found = parse(node.value)
        if not found:
            raise ValueError("it takes more than 0")
        return found
    except ValueError as e:
        problems.add(node, f"{name}: {e}")
        return 0


def whole_number(node: Node | None, name: str, largest: int, problems: Problems) -> int:
    """Return a number from 1 to `largest`; 0 where the option is missing or wrong."""
    if node is None:
        return 0
    if type(node.value) is not int:
        problems.add(node, f"{name} is a whole number, not {node.kind()}")
    elif not 0 < node.value <= largest:
        problems.add(node, f"{name} is {node.value}; it takes 1 to {largest:,}")
    else:
        return int(node.value)
    return 0


def event_path(node: Node, name: str, what: str, problems: Problems) -> str:
    """Return the path in `${path}`, without filters; "": it is wrong."""
    text = node.value if isinstance(node.value, str) else ""
    path = text[2:-1].strip() if text.startswith("${") and text.endswith("}") else ""
    try:
        if path and isinstance(parse(path), Path):
            value_at(path)
            return path
    except ValueError as e:
        problems.add(node, f"{name}: {e}")
        return ""
    problems.add(node, f"{name} is one path to {what}: ${{data.path}}", "without filters")
    return ""


@lru_cache(maxsize=4096)
def value_at(path: str) -> Get:
    """Return a function event -> value of a path. Raises ValueError."""
    return getter(path.removeprefix("event."))


def about(ms: int) -> str:
    """Return a duration in its largest fitting unit: 18 s, 3 min, 2 h, 5 d."""
    seconds = max(ms, 0) / 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def utc_text(ms: int) -> str:
    """Return a time as RFC 3339 text: 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
