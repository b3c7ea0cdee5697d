"""Finds rules that follow one another in a circle without a condition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oncue.errors import RuleFileError
from oncue.rules.parsing.rule_file import Rule, RuleSet


def check_circles(files: Sequence[RuleSet], others: Iterable[RuleSet]) -> None:
    """Raise RuleFileError for a rule of the files that starts itself without end.

    `others`: files of the same owner. A rule with `match` or `when` may end a circle.
    """
    rules = {rule.name: rule for s in (*others, *files) for rule in s.rules if _always(rule)}
    clear: set[str] = set()  # rules from which no circle is reached
    for ruleset in files:
        for rule in ruleset.rules:
            if rule.name in rules and (circle := _circle(rule.name, rules, clear)):
                raise RuleFileError(
                    f"rules start one another without end: {' → '.join(reversed(circle))}",
                    remedy="add `match` or `when` to one of them, or leave out one `done`",
                    file=ruleset.file,
                    line=rule.line,
                    column=1,
                )


def _always(rule: Rule) -> bool:
    return bool(rule.follows) and "match" not in rule.source and rule.when is None


def _circle(start: str, rules: Mapping[str, Rule], clear: set[str]) -> list[str]:
    """Return the rules of a circle that `start` leads to, the last first."""
    path: list[str] = []
    waiting = [(start, 0)]
    while waiting:
        name, depth = waiting.pop()
        clear.update(path[depth:])
        del path[depth:]
        if name in path:
            return [*path[path.index(name) :], name]
        if name in clear or name not in rules:
            continue
        path.append(name)
        waiting += [(other, depth + 1) for other in rules[name].follows or ()]
    clear.update(path)
    return []
