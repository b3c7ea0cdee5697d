"""`on: {done: RULE}`: conditions, positions of mistakes, circles, fields, tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.circles import check_circles
from oncue.rules.parsing.plausibility import implausible
from oncue.rules.parsing.rule_file import Rule, RuleSet, parse
from oncue.rules.testing.runner import run_tests

FIRST = "rules:\n  - {name: a, on: {type: t}, run: {function: f, args: {path: x}}}\n"


def parsed(*rules: str, **more: object) -> RuleSet:
    return parse(FIRST + "".join(f"  - {rule}\n" for rule in rules), "r.yaml", rules=(), **more)  # type: ignore[arg-type]


def rule(on: str) -> Rule:
    return parsed(f"{{name: b, on: {on}, run: {{function: f}}}}").rules[1]


@pytest.mark.parametrize(
    ("on", "follows", "conditions"),
    [
        ("{done: a}", ("a",), ["data.rule = 'a'"]),
        ("{done: [a, b]}", ("a", "b"), ["data.rule in ['a', 'b']"]),
        ("{done: a, state: failed}", ("a",), ["data.rule = 'a'", "type = 'oncue.task.failed'"]),
        (
            "{done: a, state: [ok, lost]}",
            ("a",),
            ["data.rule = 'a'", "type in ['oncue.task.succeeded', 'oncue.task.lost']"],
        ),
        ("{type: oncue.task.failed}", (), ["type = 'oncue.task.failed'"]),
        ('{type: "oncue.task.*"}', (), ["type glob 'oncue.task.*'"]),
        ("{type: [oncue.task.lost, t]}", None, ["type in ['oncue.task.lost', 't']"]),
        ('{type: "oncue.*"}', None, ["type glob 'oncue.*'"]),
    ],
)
def test_on_says_whose_outcomes_are_events(on: str, follows: tuple[str, ...] | None, conditions: list[str]) -> None:
    found = rule(on)
    assert found.follows == follows
    assert [c.describe() for c in found.conditions] == conditions


@pytest.mark.parametrize(
    ("on", "column", "message"),
    [
        ("{done: c}", 26, "there is no rule 'c'"),
        ("{done: [a, 7]}", 30, "`done` is a rule's name or a list of them, not a whole number"),
        ("{done: a, state: won}", 36, "there is no state 'won' of an outcome"),
        ("{done: a, type: t}", 29, "`on` with `done` has no key 'type'"),
    ],
)
def test_mistakes_have_a_position(on: str, column: int, message: str) -> None:
    with pytest.raises(RuleFileError) as e:
        rule(on)
    assert e.value.message == message
    assert (e.value.details["line"], e.value.details["column"]) == (3, column)


def test_a_circle_without_a_condition_is_refused() -> None:
    def run(name: str, on: str, more: str = "") -> str:
        return f"{{name: {name}, on: {{done: {on}}}, {more} run: {{function: f}}}}"

    ring = parsed(run("b", "[a, d]"), run("c", "b"), run("d", "c"))
    with pytest.raises(RuleFileError) as e:
        check_circles([ring], [])
    assert e.value.message == "rules start one another without end: b → c → d → b"
    check_circles([parsed(run("b", "[a, d]"), run("c", "b", 'when: "data.value.n < 9",'), run("d", "c"))], [])
    check_circles([parsed(run("b", "a"), run("c", "[a, b]"), run("d", "[a, b, c]"))], [])
    with pytest.raises(RuleFileError):
        check_circles([parsed(run("b", "b"))], [])


def test_a_circle_over_two_files_is_refused() -> None:
    one = parse("rules: [{name: x, on: {done: y}, run: {function: f}}]", "one.yaml", rules=("y",))
    two = parse("rules: [{name: y, on: {done: x}, run: {function: f}}]", "two.yaml", rules=("x",))
    with pytest.raises(RuleFileError) as e:
        check_circles([two], [one])
    assert e.value.details["file"] == "two.yaml"


def test_fields_that_no_outcome_has_are_warned_of() -> None:
    args = "{p: '${data.args.paht}', v: '${data.value.x}', t: '${data.vlaue}', e: '${data.event.data.n}'}"
    found = parsed(f"{{name: b, on: {{done: a}}, match: {{data.state: won}}, run: {{function: f, args: {args}}}}}")
    said = [(w.message, w.remedy) for w in implausible(found, {}, ())]
    assert ("run: outcomes of a have no data.args.paht", "did you mean 'data.args.path'?") in said
    assert ("run: outcomes of a have no data.vlaue", "did you mean 'data.value'?") in said
    assert any("never 'won'" in message for message, _ in said)
    assert len(said) == 3


def test_tests_of_a_rule_need_not_repeat_on(tmp_path: Path) -> None:
    tests = (
        "[{event: {data: {value: {out: 4}}}, expect: {fires: true, args: {n: 4}}},"
        " {event: {data: {rule: other, value: {out: 4}}}, expect: {fires: false}},"
        " {event: {type: oncue.task.lost, data: {value: {out: 4}}}, expect: {fires: false}}]"
    )
    run = "run: {function: f, args: {n: '${data.value.out}'}}"
    found = run_tests(parsed(f"{{name: b, on: {{done: a, state: ok}}, {run}, tests: {tests}}}"), tmp_path)
    assert [(t.passed, t.why) for t in found if not t.passed] == []
    assert len(found) == 3
