"""Patterns of `join.all` and `absent`: whose events they are, and what a rule without `on` hears."""

from __future__ import annotations

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.plausibility import implausible
from oncue.rules.parsing.rule_file import Rule, parse

FIRST = "rules:\n  - {name: a, on: {type: t}, run: {function: f}}\n  - {name: b, on: {type: t}, run: {function: f}}\n"
TRIGGERS = ("scans", "darks")


def rule(operators: str, on: str = "") -> Rule:
    text = f"{FIRST}  - {{name: r, {on} {operators}, run: {{function: f}}}}\n"
    return parse(text, "r.yaml", triggers=TRIGGERS, rules=()).rules[-1]


def join(patterns: str) -> str:
    return f"join: {{all: {patterns}, deadline: 1s}}"


@pytest.mark.parametrize(
    ("patterns", "follows", "first"),
    [
        ("{x: scans, y: darks}", None, "oncuetrigger in ['scans', 'darks']"),
        ("{x: scans, y: {on: scans, match: {data.n: 1}}}", None, "oncuetrigger in ['scans']"),
        ("{x: {on: {done: a}}, y: {on: {done: b, state: ok}}}", ("a", "b"), "data.rule in ['a', 'b']"),
        ("{x: {on: {done: a}}, y: {on: {type: oncue.task.lost}}}", (), "any(all(data.rule = 'a') , "),
        ("{x: {on: {overdue: a}}, y: scans}", None, "any(all(oncueoverdue = 'a') , "),
    ],
)
def test_a_rule_hears_the_events_of_all_patterns(patterns: str, follows: tuple[str, ...] | None, first: str) -> None:
    found = rule(join(patterns))
    assert found.follows == follows
    assert found.conditions[0].describe().startswith(first)
    assert found.of_on == len(found.conditions)
    assert set(found.on["join"]) == {"x", "y"}


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (
            join("{x: scans, y: {on: {done: a}}}"),
            "the patterns of a rule are about events, or about outcomes of tasks, not both",
        ),
        (join("{x: scans, y: {match: {data.n: 1}}}"), "a rule lacks the key 'on'"),
        ("absent: {after: scans, expect: {match: {data.n: 1}}, within: 1s}", "a rule lacks the key 'on'"),
        ("absent: {after: scans, expect: darkes, within: 1s}", "there is no trigger 'darkes'"),
        (join("{x: {on: {done: c}}}"), "there is no rule 'c'"),
        (join("{x: {match: {data.n: 1}}, y: {on: {done: a}}}") + ", on: scans", "`on` and the pattern 'y': one is"),
        (join("{x: {match: {data.n: 1}}, y: scans}") + ", on: {done: a}", "`on` and the pattern 'y': one is about"),
        (join("{x: scans, y: scans}"), "join.all.y is the pattern of 'x' again, and an event is of the first"),
        ("sequence: {steps: [{x: scans}, {y: scans}], within: 1s}", "sequence.steps.y is the pattern of 'x' again"),
        (join("{x: {on: scans, match: {data.n: {gt: 1, lt: 0}}}}"), "data.n"),
    ],
)
def test_mistakes_are_named(operators: str, message: str) -> None:
    with pytest.raises(RuleFileError) as e:
        rule(operators)
    assert message in str(e.value)


def test_a_deploy_warns_of_types_that_nobody_makes() -> None:
    text = f"{FIRST}  - {{name: r, {join('{x: {on: {type: oncue.overdu}}, y: scans}')}, run: {{function: f}}}}\n"
    found = implausible(parse(text, "r.yaml", triggers=TRIGGERS, rules=()), {}, ())
    assert [warning.remedy for warning in found] == ["did you mean 'oncue.overdue'?"]


def test_the_on_of_a_rule_holds_for_all_patterns() -> None:
    found = rule(join("{x: {match: {data.n: 1}}, y: {match: {data.n: 2}}}"), "on: scans,")
    assert (found.on, found.of_on) == ("scans", 1)
    assert [c.describe() for c in found.conditions[:2]] == ["oncuetrigger = 'scans'", "data.n in [1, 2]"]
