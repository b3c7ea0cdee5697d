"""Conditions that can never hold are errors of a rule file, with their place."""

from __future__ import annotations

import time

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.rule_file import RuleSet, parse

HEAD = "rules:\n- name: r\n  on: {type: t}\n  run: {function: f}\n  match: "


def deployed(match: str, stored: bool = False) -> RuleSet:
    return parse(HEAD + match + "\n", "x.yaml", stored=stored)


@pytest.mark.parametrize(
    ("match", "column", "says"),
    [
        ("{data.n: .nan}", 19, "no event has the value nan"),
        ("{data.n: {eq: .NaN}}", 24, "no event has the value nan"),
        ("{data.n: [1, .nan]}", 19, "no event has the value nan"),
        ("{data.n: .inf}", 19, "no event has the value inf"),
        ("{data.n: {gt: .inf}}", 24, "no number is beyond inf"),
        ("{data.n: {le: -.inf}}", 24, "no number is beyond -inf"),
        ("{data.n: {gt: 10, lt: 5}}", 32, "`> 10` and `< 5` never hold together"),
        ("{data.n: {gt: 5, le: 5}}", 31, "never hold together"),
        ("{data.n: {ge: 1MB, lt: 1kB}}", 33, "never hold together"),
        ("{data.n: {gt: 5}, all: [{data.n: {lt: 3}}]}", 48, "never hold together"),
        ("{data.n: {all: [{gt: 3}, {lt: 2}]}}", 40, "never hold together"),
        ("{any: [{data.m: 1}, {data.n: {gt: 5, lt: 3}}]}", 51, "never hold together"),
        ("{time: {ge: '2026-01-01T00:00:00Z', lt: '2025-01-01T00:00:00Z'}}", 50, "never hold together"),
        ("{data.n: {gt: 5, lt: '2025-01-01T00:00:00Z'}}", 31, "never hold together"),
        ("{data.n: {exists: false, eq: 1}}", 39, "a missing field fulfils nothing else"),
        ("{data.n: {exists: false, ne: 1}}", 39, "a missing field fulfils nothing else"),
        ("{data.n: {in: [1, 2], gt: 3}}", 36, "never hold together"),
        ("{data.n: {eq: a, prefix: b}}", 35, "never hold together"),
        ("{data.n: {eq: 2, ne: 2.0}}", 31, "never hold together"),
        ("{data.n: {gt: 1, eq: true}}", 31, "never hold together"),
        ("{data.n: {prefix: a, gt: 3}}", 35, "never hold together"),
    ],
)
def test_what_never_holds_is_an_error_with_its_place(match: str, column: int, says: str) -> None:
    with pytest.raises(RuleFileError) as e:
        deployed(match)
    assert says in e.value.message
    assert (e.value.details["line"], e.value.details["column"]) == (5, column)
    assert e.value.remedy
    assert deployed(match, stored=True).rules  # what is in force goes on


@pytest.mark.parametrize(
    "match",
    [
        "{data.n: {ne: .nan}}",
        "{data.n: {lt: .inf}}",
        "{data.n: {gt: 5, lt: 5.5}}",
        "{data.n: {ge: 5, le: 5}}",
        "{data.n: {exists: false}}",
        "{data.n: {exists: true, eq: 1}}",
        "{data.n: {in: [1, 2], gt: 1}}",
        "{data.n: {gt: 3, not: {lt: 2}}}",
        "{not: {data.n: {gt: 5, lt: 3}}}",
        "{any: [{data.n: {gt: 5}}, {data.n: {lt: 3}}]}",
        "{data.t: {prefix: a, gt: '2025-01-01T00:00:00Z'}}",
        "{data.n: {gt: 5}, data.m: {lt: 3}}",
    ],
)
def test_what_may_hold_is_none(match: str) -> None:
    assert deployed(match).rules


def test_long_lists_and_many_conditions_are_compared_soon() -> None:
    values = ", ".join(map(str, range(50_000)))
    bounds = ", ".join(f"{{data.n: {{gt: {n}}}}}" for n in range(400))
    start = time.process_time()
    deployed(f"{{data.a: {{in: [{values}], gt: 60000}}, all: [{bounds}]}}")
    assert time.process_time() - start < 5
