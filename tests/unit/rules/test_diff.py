"""Difference between two rule files."""

from __future__ import annotations

import difflib
import random
import time

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


def test_a_diff_is_that_of_the_whole_files() -> None:
    chance = random.Random(7)
    base = [(f"r{n}", chance.choice("xyz")) for n in range(40)]
    old = rule_set(*base)
    for _ in range(100):
        after = list(base)
        for _ in range(chance.randint(0, 4)):
            at = chance.randrange(len(base))
            after[at : at + chance.randint(0, 2)] = [(f"s{chance.random()}", "x")] * chance.randint(0, 1)
        new = rule_set(*dict(after).items())

        lines = difflib.unified_diff(old.text.splitlines(), new.text.splitlines(), "f (deployed)", "f", lineterm="")
        assert diff(old, new).text == "\n".join(lines)


def test_one_change_in_a_large_file_is_shown() -> None:
    rules = [(f"r{n}", "x") for n in range(3_000)]
    changed = [*rules[:1_500], ("r1500", "y"), *rules[1_501:]]

    found = diff(rule_set(*rules), rule_set(*changed))

    assert found.changed == ("r1500",)
    assert "@@ -1499,7 +1499,7 @@" in found.text
    assert len(found.text.splitlines()) == 11


def test_files_that_would_take_minutes_to_compare_are_counted() -> None:
    """difflib's time grows with the square of the lines, or with the cube."""
    one = RuleSet("f", "".join(f"# {n}\n# {n % 900}\n" for n in range(40_000)), (), ())
    other = RuleSet("f", "".join(f"# {n % 900}\n# {-n}\n" for n in range(40_000)), (), ())
    start = time.thread_time()

    text = diff(one, other).text

    assert time.thread_time() - start < 15
    assert text.endswith(" lines: too many to show @@")
    assert text.splitlines()[-1].startswith("@@ +39,")
