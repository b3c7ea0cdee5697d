"""`for_each`: a task for each item of a list, and ${item} in its arguments."""

from __future__ import annotations

from typing import Any

import pytest

from oncue.errors import RuleFileError
from oncue.protocol.records import Event
from oncue.rules.explain import explain
from oncue.rules.matching.item_list import MOST_ITEMS
from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.rule_cost import RuleCost
from oncue.rules.testing.simulation import simulate


def rule(run: str, more: str = "") -> Rule:
    return parse(f"rules: [{{name: r, on: {{type: t}}, {more} run: {run}}}]", "r.yaml").rules[0]


def event(data: Any, id: str = "1") -> Event:
    return Event(id=id, source="/s", type="t", data=data)


@pytest.mark.parametrize(
    ("run", "data", "expected"),
    [
        (
            '{function: f, for_each: "${data.d}", args: {x: "${item}", n: "${data.n}"}}',
            {"d": [1, "b"], "n": 5},
            [{"x": 1, "n": 5}, {"x": "b", "n": 5}],
        ),
        (
            '{function: f, for_each: "${data.d}", args: {x: "${item.a.0}/${item.b | upper} of ${id}"}}',
            {"d": [{"a": [7], "b": "y"}]},
            [{"x": "7/Y of 1"}],
        ),
        (
            '{function: f, for_each: "${data.d}", args: ["${item.n * 2}", "${item.z | default(3)}"]}',
            {"d": [{"n": 4}]},
            [[8, 3]],
        ),
        ('{function: f, for_each: "${data.d | split(\',\')}", args: ["${item}"]}', {"d": "a,b"}, [["a"], ["b"]]),
        ('{function: f, for_each: [left, "${data.d}"], args: ["${item}"]}', {"d": 3}, [["left"], [3]]),
        ('{function: f, for_each: "${data.d}", args: [1]}', {"d": [0, 0]}, [[1], [1]]),
        (
            '[{function: f, for_each: "${data.d}", args: ["${item}"]}, {function: g, args: ["${data.n}"]}]',
            {"d": [1, 2], "n": 9},
            [[1], [2], [9]],
        ),
        ('{shell: "look ${item} ${data.n}", for_each: "${data.d}"}', {"d": [1, 2], "n": 9}, ...),
    ],
)
def test_each_item_is_a_task(run: str, data: Any, expected: Any) -> None:
    found = explain(rule(run), event(data))
    assert (found.fires, found.why) == (True, "all conditions hold")
    assert len(found.args) == 2 if expected is ... else found.args == expected


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"d": []}, "all conditions hold, and it makes no task: the list of `for_each` is empty"),
        ({"d": {"a": 1}}, """for_each: ${data.d} is not a list but '{"a":1}'"""),
        ({"d": "abc"}, "for_each: ${data.d} is not a list but 'abc'"),
        ({"d": None}, "for_each: ${data.d} is not a list but 'null'"),
        ({}, "for_each: the event has no data.d"),
        ({"d": [{"a": 1}, {}]}, "args.x: an item has no a"),
        (
            {"d": [0] * (MOST_ITEMS + 1)},
            "for_each: ${data.d} has 10,001 items; one event makes 10,000 tasks at most",
        ),
    ],
)
def test_an_event_whose_list_makes_no_tasks_says_why(data: Any, why: str) -> None:
    found = explain(rule('{function: f, for_each: "${data.d}", args: {x: "${item.a}"}}'), event(data))
    assert (found.fires, found.why) == (False, why)


def test_all_runs_together_make_a_bounded_number_of_tasks() -> None:
    run = '{function: f, for_each: "${data.d}"}'
    found = explain(rule(f"[{run}, {run}]"), event({"d": [0] * (MOST_ITEMS // 2 + 1)}))
    assert (found.fires, found.why) == (
        False,
        "for_each: ${data.d} has 10,002 items; one event makes 10,000 tasks at most",
    )


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{function: f, for_each: 3}", "`for_each` is a list, or one ${...} whose value is a list"),
        ("{function: f, for_each: 'a ${data.d}'}", "`for_each` is a list, or one ${...} whose value is a list"),
        ("{function: f, for_each: []}", "`for_each` has 0 items; it takes 1 to 10,000"),
        ("{function: f, for_each: '${item}'}", ""),
        (
            "{function: f, for_each: '${data.d}', args: ['${item.n + data.m}']}",
            "args[0]: ${item.n + data.m} is of the item and of the event: write a ${...} for each of them",
        ),
        ("{function: f, args: ['${item.n}']}", "an event has no 'item' to look into"),
    ],
)
def test_mistakes_are_named(run: str, message: str) -> None:
    if not message:  # an extension of the event may have this name
        assert rule(run)
        return
    with pytest.raises(RuleFileError) as e:
        rule(run)
    assert message in str(e.value)


def test_the_items_of_a_batch_and_after_dedupe() -> None:
    events = [(n, event({"d": ["a", "b"][: n % 3]}, str(n))) for n in range(3)]
    of_batch = rule('{function: f, for_each: "${each.data.d}", args: ["${item}", "${count}"]}', "batch: {count: 3},")
    assert [f.args for f in simulate(of_batch, events)] == [[[[], 3], [["a"], 3], [["a", "b"], 3]]]
    passed = rule('{function: f, for_each: "${data.d}", args: ["${item}"]}', "dedupe: {ttl: 1h},")
    assert [f.args for f in simulate(passed, [*events, (9, events[1][1])])] == [[], [["a"]], [["a"], ["b"]]]


def test_the_cost_of_a_rule_grows_with_its_items() -> None:
    args = 'args: ["${event}"]'
    plain, each = (
        RuleCost(rule(f"{{function: f, {args}}}")),
        RuleCost(rule(f"{{function: f, for_each: '${{data.d}}', {args}}}")),
    )
    assert each.all < 2_000 < 100_000 < plain.all
