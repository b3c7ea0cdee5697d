"""Matching: operators, the index against testing every rule, explanations against the matcher, templates, CEL."""

from __future__ import annotations

import fnmatch
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.errors import RuleFileError
from oncue.globs import compiled
from oncue.protocol.records import VERSION, Deployment, Event
from oncue.rules.active_rules import RuleCompiler
from oncue.rules.explain import decide, explain
from oncue.rules.matching.cel import compile_cel
from oncue.rules.matching.conditions import glob, regex
from oncue.rules.matching.index import Index
from oncue.rules.matching.template import whole
from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.testing.runner import run_tests
from tests.colliding import integers


def event(data: Any = None, **attributes: Any) -> Event:
    known = {k: attributes.pop(k) for k in ("id", "source", "type", "subject", "time") if k in attributes}
    return Event(**({"id": "1", "source": "/s", "type": "t"} | known), data=data, extensions=attributes)


def one(**parts: Any) -> Rule:
    """A rule of these parts (JSON is YAML)."""
    body = {"name": "r", "on": {"type": "t"}, "run": {"function": "f"}} | parts
    return parse(json.dumps({"rules": [body]})).rules[0]


DATA = {"size": 2_000_000, "path": "/d/scan_1.h5", "ok": True, "n": 1, "f": 1.0, "t": "2026-02-01T00:00:00Z", "z": None}
DATA |= {"tags": ["a", "b"], "deep": {"x": {"y": 3}}, "a.b": 4}
OPERATORS = [
    ({"data.size": 2_000_000}, True),
    ({"data.size": {"gt": "1MB", "lt": "1 GiB"}}, True),
    ({"data.size": {"gt": "2MB"}}, False),
    ({"data.size": {"ge": "2MB", "le": 2_000_000.0}}, True),
    ({"data.ok": True}, True),
    ({"data.ok": 1}, False),
    ({"data.n": True}, False),
    ({"data.n": 1.0}, True),
    ({"data.f": 1}, True),
    ({"data.ok": {"gt": 0}}, False),
    ({"data.n": ["x", 1]}, True),
    ({"data.path": ["x", "/d/scan_1.h5"]}, True),
    ({"data.path": {"prefix": "/d/", "suffix": ".h5"}}, True),
    ({"data.path": {"glob": "**/scan_*.h5"}}, True),
    ({"data.path": {"glob": "/d/*.{h5,tif}"}}, True),
    ({"data.path": {"regex": r"scan_\d+"}}, True),
    ({"data.path": {"regex": r"^scan"}}, False),
    ({"data.path": {"gt": "1MB"}}, False),
    ({"data.t": {"gt": "2026-01-31T23:59:59+00:00"}}, True),
    ({"data.t": {"lt": "2026-01-31"}}, False),
    ({"data.nope": {"ne": 1}}, False),
    ({"data.nope": {"not": 1}}, True),
    ({"data.nope": {"exists": False}}, True),
    ({"data.z": {"exists": True}}, True),
    ({"data.z": None}, True),
    ({"data.nope": None}, False),
    ({"data.n": {"not_in": [2, 3]}}, True),
    ({"data.tags": {"eq": ["a", "b"]}}, True),
    ({"data.tags.1": "b"}, True),
    ({"data.tags.7": "b"}, False),
    ({"data.deep.x.y": 3}, True),
    ({'data."a.b"': 4}, True),
    ({"data.n": {"any": [{"gt": 5}, {"lt": 2}]}}, True),
    ({"data.n": {"all": [{"gt": 0}, {"lt": 2}]}}, True),
    ({"data.n": {"not": {"gt": 0, "lt": 2}}}, False),
    ({"any": [{"data.n": 7}, {"data.ok": True, "data.f": 1}]}, True),
    ({"not": [{"data.n": 7}, {"data.n": 1}]}, False),
    ({"subject": "s", "beamline": "2bm"}, True),
    ({"beamline": {"exists": False}}, False),
]


@pytest.mark.parametrize(("match", "expected"), OPERATORS)
def test_operators(match: dict[str, Any], expected: bool) -> None:
    rule, happened = one(match=match), event(DATA, subject="s", beamline="2bm")
    assert (decide(rule, happened) is None) is expected
    assert explain(rule, happened).fires is expected


def test_on_takes_globs_and_lists() -> None:
    assert (
        decide(one(on={"type": "org.*.file", "source": ["/a", "/b"]}), event(type="org.aps.file", source="/b")) is None
    )
    assert decide(one(on={"type": "org.*.file"}), event(type="org/aps.file")) is not None


def test_an_explanation_names_the_first_condition_that_failed() -> None:
    rule = one(match={"data.size": {"gt": "1MB"}, "data.n": 5, "data.ok": True}, when="data.nope > 1")
    found = explain(rule, event({"size": 2_000_000, "n": 4}))
    assert [s.holds for s in found.steps] == [True, True, False]
    assert found.why == "data.n = 5: found 4, wanted = 5"
    found = explain(rule, event({"size": 2_000_000, "n": 5, "ok": True}))
    assert not found.fires
    assert "nope" in found.steps[-1].found


VALUES = st.sampled_from(["a", "b", "/d/x", "/d/y/z", "/data/raw/scan_1", 1, 1.0, True, False, None, 2, [1]])
TEXTS = st.sampled_from(["a", "/d/", "/d/x", "/data/raw/s", "/data/raw/scan_", ""])
CONDITION = st.one_of(
    VALUES,
    st.lists(VALUES, min_size=1, max_size=3),
    TEXTS.map(lambda t: {"prefix": t}),
    TEXTS.map(lambda t: {"glob": t + "**"}),
    st.sampled_from([1, 2]).map(lambda n: {"ge": n}),
    st.booleans().map(lambda b: {"exists": b}),
    VALUES.map(lambda v: {"not": {"eq": v}}),
)
MATCH = st.dictionaries(st.sampled_from(["data.a", "data.b", "subject"]), CONDITION, max_size=3)
EVENT = st.builds(
    lambda data, kind, subject: event(data, type=kind, subject=subject),
    st.one_of(st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2), st.none()),
    st.sampled_from(["t", "u"]),
    st.sampled_from([None, "a", "/d/x"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["t", "u", "*"]), MATCH), min_size=1, max_size=40), st.lists(EVENT, max_size=10)
)
def test_the_index_gives_what_testing_every_rule_gives(rules: list[Any], events: list[Event]) -> None:
    bodies = [
        {"name": f"r{n}", "on": {"type": on}, "match": match, "run": {"function": "f"}}
        for n, (on, match) in enumerate(rules)
    ]
    active_rules = RuleCompiler().compile(
        [Deployment(VERSION, "x", 1, "me", json.dumps({"rules": bodies}), {"f": "0"})]
    )
    assert not active_rules.broken
    for happened in events:
        brute = [name for name, entry in active_rules.entries.items() if decide(entry.rule, happened) is None]
        assert [entry.rule.name for entry in active_rules.matching(happened)] == brute
        assert [name for name, entry in active_rules.entries.items() if explain(entry.rule, happened).fires] == brute


def test_numbers_of_rule_files_are_not_hashed_as_they_are() -> None:
    many = integers(40)
    assert len(set(map(hash, many))) == 1  # a dict of thousands of them takes minutes
    rules = [one(name=f"r{n}", match={"data.n": [*many, n]}) for n in range(10)]
    index = Index([(rule.name, rule.conditions[1:]) for rule in rules])  # without `on`

    tables = [table for _, table in index._root.exact]
    assert [len(table) for table in tables] == [50]
    assert len(set(map(hash, tables[0]))) == 50
    for n in (3, 3.0, many[5], many[5] * 10):
        brute = [rule.name for rule in rules if decide(rule, event({"n": n})) is None]
        assert [name for name in index.candidates(event({"n": n})) if name in brute] == brute


@pytest.mark.parametrize(
    "match",
    [
        lambda n: {f"data.a{i}": 1 for i in range(300)},  # the tree is as deep
        lambda n: {f"data.a{i}": [*range(100), n] for i in range(6)},  # ... or a node for each combination
        lambda n: {f"data.b{n // 2}": n, "data.a1": 1},  # ... or a table for each two rules
    ],
)
def test_the_index_of_any_rules_is_small(match: Callable[[int], dict[str, Any]]) -> None:
    rules = [one(name=f"r{n}", match=match(n)) for n in range(100)]
    index = Index([(rule.name, rule.conditions) for rule in rules])

    nodes, tables = [index._root], 0
    for node in nodes:
        for _, table in node.exact:
            nodes += table.values()
            tables = max(tables, len(node.exact))
    assert len(nodes) < 10_000
    assert tables <= 16
    happened = event({f"a{i}": 1 for i in range(300)} | {"b49": 99})
    brute = [rule.name for rule in rules if decide(rule, happened) is None]
    assert brute
    assert [name for name in index.candidates(happened) if name in brute] == brute


def test_an_integer_may_be_larger_than_all_floats() -> None:
    large = 10**400
    rules = [
        one(name=f"r{n}", match={"data.n": match}) for n, match in enumerate([{"gt": large}, {"lt": large}, large])
    ]
    rules += [one(name=f"s{n}", match={"data.n": n}) for n in range(5)]
    index = Index([(rule.name, rule.conditions) for rule in rules])

    def matching(value: object) -> list[str]:
        happened = event({"n": value})
        return [r.name for r in rules if decide(r, happened) is None and r.name in index.candidates(happened)]

    assert matching(large) == ["r2"]
    assert matching(large + 1) == ["r0"]
    assert matching(3) == ["r1", "s3"]


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?/.", max_size=8), st.text("ab/.", max_size=8))
def test_the_short_ways_of_globs_agree_with_the_expression(pattern: str, path: str) -> None:
    assert glob(pattern).check(path) is (compiled(pattern).fullmatch(path) is not None)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["", "a/", "/a/", "/"]),
    st.tuples(*[st.text("ab.", max_size=2)] * 2).map("*".join),
    st.text("ab./\n", max_size=8),
    st.booleans(),
)
def test_a_glob_of_names_below_a_folder_agrees_with_the_expression(
    folder: str, name: str, path: str, below: bool
) -> None:
    pattern, path = f"{folder}**/{name}", folder + path if below else path
    assert glob(pattern).check(path) is (compiled(pattern).fullmatch(path) is not None)


@settings(max_examples=200, deadline=None)
@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=8))
def test_globs_without_folders_are_fnmatch(pattern: str, path: str) -> None:
    assert glob(pattern).check(path) is bool(re.fullmatch(fnmatch.translate(pattern), path))


@settings(max_examples=200, deadline=None)
@given(st.text("ab|()*.", max_size=7), st.text("abé", max_size=8))
def test_regexes_are_those_of_python_where_both_have_them(pattern: str, text: str) -> None:
    try:
        reference = re.compile(pattern)
        check = regex(pattern).check
    except Exception:
        return
    assert check(text) is (reference.search(text) is not None)


def test_hostile_input_is_quick() -> None:
    start = time.process_time()
    assert not regex("(a+)+$").check("a" * 5_000 + "!")
    assert not glob("*a" * 100).check("a" * 5_000 + "!")
    assert not regex("x").check("\ud800")
    assert time.process_time() - start < 1


# ---------------------------------------------------------------- CEL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.n > 0.5", True),
        ("has(data.nope) && data.nope > 1", False),
        ('"a" in data.tags', True),
        ('event.type == "t" && event.beamline == "2bm" && id == "1"', True),
        ('data.path.matches("scan_[0-9]+")', True),
        ('timestamp(data.t) > timestamp("2026-01-01T00:00:00Z")', True),
    ],
)
def test_cel(text: str, expected: bool) -> None:
    assert compile_cel(text).test(event(DATA, beamline="2bm")) is expected


@pytest.mark.parametrize("text", ["data.nope > 1", "data.tags / 0 > 1", "data.path > 1", "data.n"])
def test_cel_that_cannot_be_evaluated_says_why(text: str) -> None:
    answer = compile_cel(text).test(event(DATA))
    assert isinstance(answer, str)
    assert answer


def test_loops_of_cel_are_capped() -> None:
    start = time.process_time()
    loops = "data.l.all(a, data.l.all(b, data.l.all(c, a + b + c >= 0)))"
    answer = compile_cel(loops).test(event({"l": list(range(200))}))
    assert "budget" in str(answer).lower()
    assert time.process_time() - start < 5


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("${data.size}", 2_000_000),
        ("${data.tags}", ["a", "b"]),
        ("n is ${data.n}, ${data.tags}!", 'n is 1, ["a","b"]!'),
        ("$${data.n}", "${data.n}"),
        ("cost: $5", "cost: $5"),
        ("${data.path | stem}", "scan_1"),
        ("${data.path | name}", "scan_1.h5"),
        ("${data.path | suffix}", ".h5"),
        ("${data.path | parent | name}", "d"),
        ({"a": ["${id}", 1]}, {"a": ["1", 1]}),
        ("${event.id} of ${event.source}", "1 of /s"),
        ("${event.data.n}", 1),
        ("${event.data.path | stem}", "scan_1"),
    ],
)
def test_arguments(given_text: Any, expected: Any) -> None:
    rule = one(run={"function": "f", "args": {"x": given_text}})
    assert rule.runs[0].args.render(event(DATA)) == {"x": expected}


def test_attributes_and_extensions_through_event() -> None:
    rule = one(run={"function": "f", "args": ["${event.beamline}", "${event.subject}"]})
    assert explain(rule, event(beamline="2bm", subject="a")).args == ["2bm", "a"]
    assert explain(rule, event(beamline="2bm")).why == "args[1]: the event has no subject"
    with pytest.raises(RuleFileError, match="an event has no 'deta'"):
        one(run={"function": "f", "args": ["${event.deta.n}"]})


def test_the_whole_event_and_a_missing_field() -> None:
    rule = one(run={"function": "f", "args": ["${event}", "${data.nope}"]})
    assert explain(rule, event(DATA)).why == "args[1]: the event has no data.nope"
    assert whole(event({"n": 1}, beamline="2bm")) == {
        "specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"n": 1}, "beamline": "2bm",
    }  # fmt: skip


# ---------------------------------------------------------------- offline tests, differences, books


def test_offline_tests(tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text(json.dumps({"data": {"n": 5}}))
    tests = [
        {"event": "scan.json", "expect": {"args": {"n": 5}}},
        {"event": "scan.json", "expect": {"args": {"n": 6}}},
        {"event": {"data": {"n": 1}}, "expect": {"fires": True}},
        {"event": {"data": {"n": 1}}, "expect": {"fires": False}},
        {"event": "none.json", "expect": {}},
    ]
    body = {
        "name": "r",
        "on": "d",
        "match": {"data.n": {"gt": 2}},
        "run": {"function": "f", "args": {"n": "${data.n}"}},
    }
    results = run_tests(parse(json.dumps({"rules": [body | {"tests": tests}]}), triggers={"d"}), tmp_path)
    assert [r.passed for r in results] == [True, False, False, True, False]
    assert results[1].why == "the arguments are {'n': 5}, expected {'n': 6}"
    assert results[2].why == "it does not fire: data.n > 2: found 1, wanted > 2"
