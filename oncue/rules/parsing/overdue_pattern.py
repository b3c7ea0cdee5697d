"""Parses `on: {overdue: RULE}` of rules on deadlines that have passed.

on: {overdue: correlate}            a join of the rule had not all of its events in time
on: {overdue: [correlate, stack]}   of several rules
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from oncue.protocol.event_types import OVERDUE_RULE, OVERDUE_TYPE
from oncue.rules.matching.conditions import Condition
from oncue.rules.parsing.condition_parser import equals
from oncue.rules.parsing.outcome_pattern import texts_of
from oncue.strict_yaml.document import Node, Problems, nearest


def is_overdue(on: Any) -> bool:
    """Return True if `on`, as plain data, names rules whose deadlines it is about."""
    return isinstance(on, dict) and "overdue" in on


def rules_overdue(on: Any) -> tuple[str, ...]:
    """Return the rules whose deadlines `on` is about; (): none."""
    if not is_overdue(on):
        return ()
    names = on["overdue"] if isinstance(on["overdue"], list) else [on["overdue"]]
    return tuple(name for name in names if isinstance(name, str))


def as_overdue(on: Any, event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with the rule of `on` as default. For tests."""
    rule = next(iter(rules_overdue(on)), "")
    filled: dict[str, Any] = {"specversion": "1.0", "id": "test", "source": "test", "type": OVERDUE_TYPE, **event}
    if isinstance(event.get("data", {}), dict):
        filled["data"] = {"rule": rule, **event.get("data", {})}
        rule = filled["data"]["rule"]
    filled.setdefault(OVERDUE_RULE, rule)
    return filled


def parse_overdue(node: Node, rules: Collection[str] | None, problems: Problems) -> list[Condition]:
    """Parse a mapping with `overdue`. `rules`: names that it may have; None: any."""
    for key in node.value:
        if key != "overdue":
            problems.add(node.at_key(key), f"`on` with `overdue` has no key {key!r}", "put it under `match`")
    names = texts_of(node.value["overdue"], "overdue", "a rule's name", problems)
    for item, name in names:
        if rules is not None and name not in rules:
            problems.add(item, f"there is no rule {name!r}", nearest(name, rules))
    return [equals(OVERDUE_RULE, [name for _, name in names])] if names else []
