"""Aggregates over the events of a firing: ${sum.data.size}, ${p95.data.ms} ..."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from oncue.errors import Invalid
from oncue.rules.matching.filters import as_text

WORDS = ("sum", "min", "max", "mean", "distinct", "p50", "p95", "p99")
_QUANTILE = re.compile(r"p([1-9][0-9]?)")

Aggregate = Callable[[Sequence[Any]], Any]


def aggregate(word: str) -> Aggregate | None:
    """Return the aggregate of this name; None: there is none.

    It takes the values of all events, at least one. It raises Invalid for values that are not
    numbers, unless it is `distinct`.
    """
    if (found := _QUANTILE.fullmatch(word)) is not None:
        percent = int(found[1])
        return lambda values: _quantile(numbers(word, values), percent)
    return _AGGREGATES.get(word)


def numbers(word: str, values: Sequence[Any]) -> list[int | float]:
    """Return the values, which have to be numbers. Raises Invalid."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(f"${{{word}...}} is of numbers, and an event has {as_text(value)[:60]!r}")
    return list(values)


def _quantile(values: list[int | float], percent: int) -> int | float:
    """Return the smallest value that `percent` of the values do not exceed."""
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


def _sum(values: Sequence[Any]) -> int | float:
    try:
        return sum(numbers("sum", values))
    except OverflowError:  # integers of many digits beside fractions
        raise Invalid("${sum...}: the sum of its values is larger than a number can be") from None


def _mean(values: Sequence[Any]) -> float:
    found = numbers("mean", values)
    try:
        return math.fsum(found) / len(found)
    except OverflowError:  # of the sum, or of an integer of many digits
        raise Invalid("${mean...}: the sum of its values is larger than a number can be") from None


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Return each value once, in the order of their first events."""
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(as_text([value]), value)
    return list(found.values())


_AGGREGATES: dict[str, Aggregate] = {
    "sum": _sum,
    "min": lambda values: min(numbers("min", values)),
    "max": lambda values: max(numbers("max", values)),
    "mean": _mean,
    "distinct": _distinct,
}
