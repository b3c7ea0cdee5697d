"""Aggregates of values at the edge of what a number can be."""

from __future__ import annotations

import pytest

from oncue.errors import Invalid
from oncue.rules.operators.aggregates import aggregate


@pytest.mark.parametrize(
    ("word", "values"),
    [("mean", [1e308, 1e308]), ("mean", [10**400]), ("sum", [10**400, 0.5])],
)
def test_a_sum_beyond_all_numbers_says_so(word: str, values: list[float]) -> None:
    found = aggregate(word)
    assert found is not None
    with pytest.raises(Invalid, match=r"larger than a number can be"):
        found(values)


def test_integers_of_many_digits_have_a_sum() -> None:
    found = aggregate("sum")
    assert found is not None
    assert found([10**400, 1]) == 10**400 + 1
