"""Parses the priority of a rule's tasks."""

from __future__ import annotations

from oncue.protocol.priority import NORMAL, PRIORITY_WORDS, priority_number
from oncue.strict_yaml.document import Node, Problems, nearest


def parse_priority(node: Node | None, problems: Problems) -> int:
    """Parse `priority`; that of normal tasks without it."""
    if node is None:
        return NORMAL
    if not isinstance(node.value, str):
        problems.add(node, f"`priority` is live, normal or low, not {node.kind()}")
        return NORMAL
    if node.value not in PRIORITY_WORDS:
        remedy = nearest(node.value, PRIORITY_WORDS) or "there are live, normal and low"
        problems.add(node, f"there is no priority {node.value[:60]!r}", remedy)
        return NORMAL
    return priority_number(node.value)
