"""Percentiles of durations by function."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.endpoint.blocks.durations import Durations


def test_nothing_is_known_at_first() -> None:
    assert Durations().percentile_us("f") == 0


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=200))
def test_a_percentile_is_not_too_short_and_at_most_a_fifth_too_long(took: list[int]) -> None:
    durations = Durations()
    for each in took:
        durations.add("f", each)

    found = durations.percentile_us("f")
    true = sorted(took)[min(len(took) - 1, int(0.95 * len(took)))]

    assert found >= sorted(took)[max(0, int(0.95 * len(took)) - 1)] * 0.99 - 1
    assert found <= true * 1.26 + 2


def test_functions_are_apart_and_old_samples_count_less() -> None:
    durations, rng = Durations(), random.Random(1)
    for _ in range(1_000):
        durations.add("f", 1_000_000 + rng.randrange(1_000))
        durations.add("g", 10)
    for _ in range(2_000):
        durations.add("f", 8_000_000)

    assert durations.percentile_us("f") == pytest.approx(8_000_000, rel=0.2)
    assert durations.percentile_us("g") < 20
