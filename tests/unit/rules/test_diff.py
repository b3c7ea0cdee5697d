"""Difference between two rule files."""

from __future__ import annotations

from oncue.rules.diff import diff
from oncue.rules.parsing.rule_file import RuleSet, parse


def rule_set(*rules: tuple[str, str], more: str = "") -> RuleSet:
    """Parse a file with these rules: (name, event type)."""
    lines = [f"  - {{name: {name}, on: {{type: {kind}}}, run: {{function: f}}{more}}}\n" for name, kind in rules]
    return parse("rules:\n" + "".join(lines), "f")


def test_added_changed_and_removed_rules() -> None:
    found = diff(rule_set(("a", "x"), ("b", "x")), rule_set(("b", "y"), ("c", "x")))

    assert (found.added, found.changed, found.removed) == (("c",), ("b",), ("a",))
    assert "-  - {name: a, on: {type: x}, run: {function: f}}" in found.text


def test_all_rules_of_a_first_deploy_are_added() -> None:
    found = diff(None, rule_set(("a", "x")))

    assert (found.added, found.changed, found.removed) == (("a",), (), ())
    assert "--- /dev/null (deployed)" in found.text


def test_a_description_does_not_change_a_rule() -> None:
    found = diff(rule_set(("a", "x")), rule_set(("a", "x"), more=", description: text"))

    assert (found.added, found.changed, found.removed) == ((), (), ())
    assert "description: text" in found.text
