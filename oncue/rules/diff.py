"""Difference between two rule files: names of rules, and a unified diff."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from oncue.rules.parsing.rule_file import RuleSet

CONTEXT = 3  # unchanged lines around a change
MOST_WORK = 50_000_000  # of difflib, whose time is quadratic; this takes some seconds at worst
_HUNK = re.compile(r"@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")


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
    return RuleDifference(
        tuple(name for name in after if name not in before),
        tuple(name for name, source in after.items() if name in before and before[name] != source),
        tuple(name for name in before if name not in after),
        _unified(old, new),
    )


def _unified(old: RuleSet | None, new: RuleSet) -> str:
    """Return the unified diff of the files, or its size if that would take too long."""
    before, after = old.text.splitlines() if old else [], new.text.splitlines()
    start = max(0, _equal_lines(before, after) - CONTEXT)
    before, after = before[start:], after[start:]
    end = max(0, _equal_lines(before[::-1], after[::-1]) - CONTEXT)
    before, after = before[: len(before) - end], after[: len(after) - end]
    names = f"{old.file if old else '/dev/null'} (deployed)", new.file
    if _work(before, after) > MOST_WORK:
        added, removed = Counter(after) - Counter(before), Counter(before) - Counter(after)
        count = f"+{added.total():,} -{removed.total():,} lines: too many to show"
        return "\n".join([f"--- {names[0]}", f"+++ {names[1]}", f"@@ {count} @@"])
    lines = list(difflib.unified_diff(before, after, *names, n=CONTEXT, lineterm=""))
    return "\n".join([*lines[:2], *(_shifted(line, start) for line in lines[2:])])


def _equal_lines(before: Sequence[str], after: Sequence[str]) -> int:
    """Return the number of equal lines at the beginning."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))


def _shifted(line: str, by: int) -> str:
    """Return a line of a diff; the line numbers of a hunk's header are increased."""
    if not line.startswith("@@"):
        return line
    return _HUNK.sub(lambda m: f"@@ -{int(m[1]) + by}{m[2] or ''} +{int(m[3]) + by}{m[4] or ''} @@", line, count=1)


def _work(before: Sequence[str], after: Sequence[str]) -> int:
    """Return an upper bound of the steps that difflib takes."""
    counts, limit = Counter(after), len(after) // 100 + 1 if len(after) >= 200 else len(after)
    pairs = sum(counts[line] for line in before if counts[line] <= limit)  # difflib leaves out popular lines
    return pairs * min(len(before), len(after))
