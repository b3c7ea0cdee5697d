"""`limits` of a rule: strict, with places and remedies."""

from __future__ import annotations

import pytest

from oncue.errors import RuleFileError
from oncue.quantities import Rate
from oncue.rules.parsing.rule_file import parse

RULE = "rules:\n  - name: r\n    on: {{type: t}}\n    run: {{function: f, endpoint: e}}\n    limits: {}\n"


def test_node_hours_per_time() -> None:
    (rule,) = parse(RULE.format("{node_hours: 50/week}")).rules
    assert rule.node_hours == Rate(50.0, 7 * 86_400_000)
    assert parse(RULE.format("{}")).rules[0].node_hours is None


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("{node_hour: 50/week}", "no key 'node_hour'"),
        ("{node_hours: 50}", "not an amount per time"),
        ("{node_hours: a lot/week}", "not an amount per time"),
        ("{node_hours: 50/min}", "counted by the hour"),
        ("{node_hours: 50/40d}", "for 35 days"),
        ("{node_hours: 0/week}", "more than 0"),
        ("50/week", "is a mapping"),
        ("[]", "is a mapping"),
    ],
)
def test_what_is_no_limit_has_a_place_and_a_reason(limits: str, words: str) -> None:
    with pytest.raises(RuleFileError, match=words) as failed:
        parse(RULE.format(limits))
    assert failed.value.details["line"] == 5
