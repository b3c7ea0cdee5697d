"""Values of Nodes as a rule file needs them: mappings, names, durations.

Errors go to Problems with their positions.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from oncue.protocol.records import NAME_CHARS
from oncue.quantities import duration_ms
from oncue.strict_yaml.document import Node, Problems, nearest

NO_LIMIT = "none"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_mapping(node: Node, what: str, problems: Problems) -> bool:
    if not isinstance(node.value, dict):
        problems.add(node, f"{what} is a mapping, not {node.kind()}")
    return isinstance(node.value, dict)


def check_keys(node: Node, keys: Collection[str], what: str, problems: Problems) -> None:
    for key in node.value:
        if key not in keys:
            problems.add(node.at_key(key), f"{what} has no key {key!r}", nearest(key, keys))


def required(node: Node, key: str, what: str, problems: Problems) -> Node | None:
    found: Node | None = node.value.get(key)
    if found is None:
        problems.add(node, f"{what} lacks the key {key!r}")
    return found


def name_of(node: Node, what: str, problems: Problems) -> str:
    found = required(node, "name", what, problems)
    if found is None:
        return ""
    name = found.value
    if not isinstance(name, str):
        problems.add(found, f"`name` is a text, not {found.kind()}")
        return ""
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS:
        problems.add(found, f"{name[:60]!r} is not a name", "letters, digits and . _ - ; a letter or digit first")
        return ""
    return name


def typed(node: Node | None, kind: type[Any], key: str, default: Any, problems: Problems) -> Any:
    if node is None:
        return default
    if type(node.value) is not kind:
        wanted = {bool: "true or false", str: "a text", int: "a whole number"}[kind]
        problems.add(node, f"`{key}` is {wanted}, not {node.kind()}")
        return default
    return node.value


def duration(node: Node | None, key: str, problems: Problems, default: int = 0) -> int:
    if node is None:
        return default
    try:
        return duration_ms(node.value)
    except ValueError as e:
        problems.add(node, f"{key}: {e}")
        return default


def time_limit(node: Node | None, key: str, problems: Problems) -> int:
    """Parse a duration above 0.

    0: no limit (missing, or `none`, which overrides the rule's).
    """
    if node is None or node.value == NO_LIMIT:
        return 0
    before = len(problems.found)
    limit = duration(node, key, problems)
    if limit == 0 and len(problems.found) == before:
        problems.add(node, f"{key}: a limit is more than 0", f"for no limit write {key}: {NO_LIMIT}")
    return limit
