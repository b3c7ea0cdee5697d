"""Parses the named patterns of an operator.

For example {raw: scans, dark: {on: darks, match: {data.n: 1}}}.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from oncue.rules.operators.selection import Parsers, Pattern, PatternSelector
from oncue.strict_yaml.document import Node, Problems

MOST_PATTERNS = 50
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")


def named_patterns(node: Node, place: str, problems: Problems, parsers: Parsers) -> PatternSelector | None:
    """Parse a mapping of names to patterns; None: it has a mistake."""
    if not isinstance(node.value, dict) or not 0 < len(node.value) <= MOST_PATTERNS:
        what = f"{place} is a mapping of 1 to {MOST_PATTERNS} names to patterns, not {node.kind()}"
        remedy = f"{place.partition('.')[2]}: {{raw: scans, dark: {{on: darks}}}}"
        if isinstance(node.value, str | list):
            remedy = 'for names in a list, or that the event has: list: "${data.parts}", by: "${data.part}"'
        problems.add(node, what, remedy)
        return None
    found: dict[str, Pattern] = {}
    written: dict[str, str] = {}
    for name, value in node.value.items():
        if not _NAME.fullmatch(name):
            problems.add(node.at_key(name), f"{place}: {name!r} is not a name", "use letters, digits, _ and -")
        if (first := written.setdefault(pattern_hash(value), name)) != name and problems.limited:
            what = f"{place}.{name} is the pattern of {first!r} again, and an event is of the first that it fits"
            problems.add(value, what, "tell their events apart by `match`; to wait for several that are alike: `count`")
        pattern = parsers.pattern(value, f"{place}.{name}", problems)
        if pattern is not None:
            found[name] = pattern
    return PatternSelector.of(found) if len(found) == len(node.value) else None


def pattern_hash(node: Node | None) -> str:
    """Return a hash of patterns as written; "": there are none."""
    if node is None:
        return ""
    return blake2b(repr(node.plain()).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
