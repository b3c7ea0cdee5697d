"""`on: {overdue: RULE}`: its condition, positions of mistakes, warnings and tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.plausibility import implausible
from oncue.rules.parsing.rule_file import RuleSet, parse
from oncue.rules.testing.runner import run_tests

FIRST = (
    "rules:\n"
    "  - {name: a, on: {type: t}, join: {count: 2, deadline: 1s}, run: {function: f}}\n"
    "  - {name: plain, on: {type: t}, run: {function: f}}\n"
)


def parsed(rule: str) -> RuleSet:
    return parse(f"{FIRST}  - {rule}\n", "r.yaml", rules=())


@pytest.mark.parametrize(
    ("on", "condition"),
    [("{overdue: a}", "oncueoverdue = 'a'"), ("{overdue: [a, plain]}", "oncueoverdue in ['a', 'plain']")],
)
def test_on_says_whose_deadlines_are_events(on: str, condition: str) -> None:
    found = parsed(f"{{name: b, on: {on}, run: {{function: f}}}}").rules[-1]
    assert [c.describe() for c in found.conditions] == [condition]
    assert found.follows is None


@pytest.mark.parametrize(
    ("on", "column", "message"),
    [
        ("{overdue: c}", 29, "there is no rule 'c'"),
        ("{overdue: 7}", 29, "`overdue` is a rule's name or a list of them, not a whole number"),
        ("{overdue: a, state: lost}", 32, "`on` with `overdue` has no key 'state'"),
    ],
)
def test_mistakes_have_a_position(on: str, column: int, message: str) -> None:
    with pytest.raises(RuleFileError) as e:
        parsed(f"{{name: b, on: {on}, run: {{function: f}}}}")
    assert (e.value.line, e.value.column, e.value.message) == (4, column, message)


@pytest.mark.parametrize(
    ("on", "match", "warnings"),
    [
        ("{overdue: a}", "{data.missing: {exists: true}}", []),
        ("{overdue: a}", "{data.mising: {exists: true}}", ["events on deadlines of a have no data.mising"]),
        ("{overdue: plain}", "{data.count: 1}", ["the rule plain is never overdue: it waits for no events"]),
        ("{type: oncue.overdue}", "{data.rule: a}", []),
    ],
)
def test_a_deploy_warns_of_deadlines_that_never_pass(on: str, match: str, warnings: list[str]) -> None:
    rules = parsed(f"{{name: b, on: {on}, match: {match}, run: {{function: f}}}}")
    found = [warning.message.partition(": this condition")[0] for warning in implausible(rules, {}, ())]
    assert found == warnings


def test_an_event_of_a_test_is_about_the_rule(tmp_path: Path) -> None:
    test = "{event: {data: {missing: [x]}}, expect: {args: {m: [x], r: a}}}"
    args = '{m: "${data.missing}", r: "${data.rule}"}'
    rules = parsed(f"{{name: b, on: {{overdue: [a]}}, run: {{function: f, args: {args}}}, tests: [{test}]}}")
    assert [(t.passed, t.why) for t in run_tests(rules, tmp_path)] == [(True, "all conditions hold")]
