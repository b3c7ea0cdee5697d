"""Lists of named items in a rule file, and the names that `on` may use."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Self

from oncue.rules.matching.conditions import Condition
from oncue.rules.parsing.condition_parser import parse_on
from oncue.rules.parsing.outcome_pattern import is_done, parse_done
from oncue.rules.parsing.overdue_pattern import is_overdue, parse_overdue
from oncue.strict_yaml.document import Node, Problems


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
