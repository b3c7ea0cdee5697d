"""Lists of named items in a rule file, and the names that `on` may use."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Self

from oncue.rules.matching.conditions import Condition
from oncue.rules.operators.selection import Pattern
from oncue.rules.parsing.condition_parser import check_possible, parse_match, parse_on
from oncue.rules.parsing.outcome_pattern import is_done, parse_done, rules_followed
from oncue.rules.parsing.overdue_pattern import is_overdue, parse_overdue
from oncue.strict_yaml.document import Node, Problems

PATTERN_KEYS = ("on", "match")
FORM = "for example {on: scans, match: {data.kind: dark}}"


class OnNames(NamedTuple):
    """Triggers and rules that `on` may name; None: any."""

    triggers: frozenset[str] | None
    rules: frozenset[str] | None

    @classmethod
    def of(cls, triggers: Collection[str] | None, rules: Collection[str] | None) -> Self:
        return cls(None if triggers is None else frozenset(triggers), None if rules is None else frozenset(rules))

    def with_those_of(self, root: Node) -> OnNames:
        """Return the names with those of a file, also of items with mistakes.

        A rule on an item with mistakes is then not reported too.
        """
        triggers, rules = ({name.value for name in _named(root, key)} for key in ("triggers", "rules"))
        return OnNames(
            None if self.triggers is None else self.triggers | triggers,
            None if self.rules is None else self.rules | rules,
        )

    def parse_on(self, node: Node, problems: Problems) -> list[Condition]:
        """Parse `on`: triggers, attributes of events, or rules that are done or overdue."""
        if isinstance(node.value, dict) and is_done(node.value):
            return parse_done(node, self.rules, problems)
        if is_overdue(node.value):
            return parse_overdue(node, self.rules, problems)
        return parse_on(node, self.triggers, problems)

    def parse_pattern(self, node: Node, place: str, problems: Problems) -> Pattern | None:
        """Parse a pattern of an operator: a trigger's name, or {on: ..., match: ...}."""
        if isinstance(node.value, str):
            return Pattern(node.value, tuple(self.parse_on(node, problems)))
        if not isinstance(node.value, dict) or not node.value:
            problems.add(
                node, f"{place} is a trigger's name, or a mapping of `on` and `match`, not {node.kind()}", FORM
            )
            return None
        for key in node.value:
            if key not in PATTERN_KEYS:
                problems.add(node.at_key(key), f"{place} has no key {key!r}", FORM)
        before = len(problems.found)
        on, match = node.value.get("on"), node.value.get("match")
        conditions = self.parse_on(on, problems) if on is not None else []
        conditions += parse_match(match, problems) if match is not None else []
        if match is not None and problems.limited and len(problems.found) == before:
            check_possible(match, problems)
        plain = on.plain() if on is not None else None
        return Pattern(plain, tuple(conditions), rules_followed(plain))


def list_of(root: Node, key: str, problems: Problems) -> list[Node]:
    """Return the items of a list of the file."""
    node = root.value.get(key)
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        problems.add(node, f"`{key}` is a list, not {node.kind()}", "begin each with `- name: ...`")
        return []
    return list(node.value)


def check_names(root: Node, key: str, problems: Problems) -> None:
    """Add a problem for each name that two items of a list have."""
    seen: dict[str, int] = {}
    for name in _named(root, key):
        if name.value in seen:
            what = key.removesuffix("s")
            problems.add(name, f"the {what} {name.value!r} is in line {seen[name.value]} already", "rename one")
        else:
            seen[name.value] = name.line


def _named(root: Node, key: str) -> list[Node]:
    node = root.value.get(key)
    items = node.value if node is not None and isinstance(node.value, list) else []
    names = [item.value["name"] for item in items if isinstance(item.value, dict) and "name" in item.value]
    return [name for name in names if isinstance(name.value, str)]
