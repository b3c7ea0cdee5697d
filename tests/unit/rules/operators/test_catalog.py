"""The operators of the catalogue: their documentation and their order in a rule."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.errors import RuleFileError
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.parsing.rule_file import parse
from tests.extending import module

PAGE = Path(__file__).parents[4] / "docs" / "operators.md"
RULE = "rules: [{{name: r, on: {{type: t}}, {operators}, run: {{function: f}}}}]"


@pytest.fixture
def newest() -> Iterator[None]:
    """Add an operator that buffers events after `batch`, which does so too."""
    with CATALOGUE.extended(module("newest").Newest):
        yield


def test_the_table_of_keys_in_the_docs_is_the_catalogue() -> None:
    documented = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|.*\|.*\|$", PAGE.read_text(), re.MULTILINE)
    known = [f"{name}.{key}" for name, member in CATALOGUE.members.items() for key in ("key", *member.OPTIONS)]

    assert documented == known


def test_an_operator_that_buffers_events_comes_last(newest: None) -> None:
    text = RULE.format(operators="newest: {every: 1s}, batch: {count: 2}")

    with pytest.raises(RuleFileError) as e:
        parse(text, "r.yaml")

    assert e.value.message == "`batch` buffers events, and `newest` would come after it"
    assert e.value.remedy == "leave one of them out, or use two rules"
    assert (e.value.line, e.value.column) == (1, text.index("newest") + 1)


def test_an_operator_that_buffers_events_may_follow_one_that_does_not(newest: None) -> None:
    rules = parse(RULE.format(operators="newest: {every: 1s}, dedupe: {ttl: 1s}"), "r.yaml").rules

    assert [r.operators.describe() for r in rules if r.operators] == ["dedupe for 1s, newest in 1s"]
