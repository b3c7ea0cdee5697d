"""Difference between two rule files: names of rules, and a unified diff."""

from __future__ import annotations

import difflib

import msgspec

from oncue.rules.parsing.rule_file import RuleSet


class RuleDifference(msgspec.Struct, frozen=True):
    """Names of the rules that a deploy adds, changes and removes."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    text: str  # unified diff of the files


def diff(old: RuleSet | None, new: RuleSet) -> RuleDifference:
    """Return the changes from `old` to `new`.

    Comments, tests and descriptions do not count. An `old` of None has no rules.
    """
    before = {rule.name: rule.source for rule in old.rules} if old else {}
    after = {rule.name: rule.source for rule in new.rules}
    lines = difflib.unified_diff(
        old.text.splitlines() if old else [],
        new.text.splitlines(),
        f"{old.file if old else '/dev/null'} (deployed)",
        new.file,
        lineterm="",
    )
    return RuleDifference(
        tuple(name for name in after if name not in before),
        tuple(name for name, source in after.items() if name in before and before[name] != source),
        tuple(name for name in before if name not in after),
        "\n".join(lines),
    )
