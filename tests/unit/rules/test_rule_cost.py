"""The cost of a rule is known without work that its author chooses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oncue.rules.parsing.rule_file import Rule, parse
from oncue.rules.rule_cost import RuleCost


def rule(**more: Any) -> Rule:
    given = {"name": "r", "on": {"type": "x"}, "run": {"function": "f"}} | more
    return parse(json.dumps({"rules": [given]}), "f.yaml", triggers=None).rules[0]


def test_no_regular_expression_is_compiled_for_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = {"any": [{"regex": "(a{1,99}|[xy]{1,99}c){1,3}"}, {"glob": "a/[0-9]*.{h5,raw}"}]}
    found = rule(match={"data.a": tests})

    def compile_again(*given: object) -> None:
        raise AssertionError(given)

    monkeypatch.setattr("re2.compile", compile_again)
    assert RuleCost(found).conditions < 1 << 10


def test_a_large_expression_is_dearer_than_a_small_one_and_a_usual_glob_costs_nothing() -> None:
    sizes = [RuleCost(rule(match={"data.a": test})).conditions for test in (
        {"regex": "(a{1,99}|[xy]{1,99}c){1,3}"}, {"regex": "^a+$"}, {"glob": "/data/**/*.h5"},
    )]  # fmt: skip

    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
