"""What a parser made is freed piece by piece, also after an error."""

from __future__ import annotations

import gc

import pytest

from oncue.errors import RuleFileError
from oncue.rules.parsing.condition_parser import MAX_CONDITIONS
from oncue.rules.parsing.rule_file import parse
from oncue.strict_yaml.document import Node

RULE = "- {{name: r{}, on: {{type: x}}, match: {{data.a: {{any: [{}]}}}}, run: {{function: f, args: {{n: ['a']}}}}}}\n"


def text(conditions: int) -> str:
    return "rules:\n" + "".join(RULE.format(n, "1," * conditions) for n in range(3))


def nodes() -> int:
    return sum(isinstance(o, Node) for o in gc.get_objects())


def test_no_node_of_the_tree_is_kept() -> None:
    before = nodes()
    kept = parse(text(3), "r.yaml")
    with pytest.raises(RuleFileError) as e:
        parse(text(3) + "wrong: 1", "r.yaml")

    assert nodes() == before
    assert len(kept.rules) == 3
    assert e.value.line == 5


def test_a_rule_has_so_many_conditions_unless_it_is_in_force() -> None:
    most = MAX_CONDITIONS - 2  # the mapping and its list count as well
    assert len(parse(text(most - 1), "r.yaml").rules) == 3
    with pytest.raises(RuleFileError, match="a rule has more than 1,000 conditions"):
        parse(text(2 * MAX_CONDITIONS), "r.yaml")

    assert len(parse(text(2 * MAX_CONDITIONS), "r.yaml", stored=True).rules) == 3
