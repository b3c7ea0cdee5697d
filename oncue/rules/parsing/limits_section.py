"""Parses the limits of a rule."""

from __future__ import annotations

from oncue.quantities import Rate, parse_rate
from oncue.rules.parsing.node_values import check_keys, is_mapping
from oncue.strict_yaml.document import Node, Problems

LIMIT_KEYS = ("node_hours",)
LEAST_MS, MOST_MS = 3_600_000, 35 * 86_400_000  # of a period; use is counted by the hour, and kept for so long


def parse_limits(node: Node | None, problems: Problems) -> Rate | None:
    """Parse `limits`; return the node-hours per time, None without them."""
    if node is None or not is_mapping(node, "`limits`", problems):
        return None
    check_keys(node, LIMIT_KEYS, "`limits`", problems)
    given = node.value.get("node_hours")
    if given is None:
        return None
    try:
        rate = parse_rate(given.value)
    except ValueError as e:
        problems.add(given, f"node_hours: {e}", "for 50 node-hours in any 7 days: 50/week")
        return None
    if not LEAST_MS <= rate.per_ms <= MOST_MS:
        problems.add(given, "node_hours: they are counted by the hour, for 35 days", "write 50/day, 50/week or 50/30d")
        return None
    if rate.amount <= 0:
        problems.add(given, "node_hours: a limit is more than 0", "to stop a rule: oncue rules disable NAME")
        return None
    return rate
