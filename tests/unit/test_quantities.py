"""Walltimes and rates as text. Durations and sizes are tested with rule files."""

from __future__ import annotations

import pytest

from oncue.quantities import (
    Duration,
    Rate,
    RateLimit,
    Size,
    Walltime,
    parse_rate,
    quantity_text,
    rate_text,
    walltime_ms,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800),
        ("2h", 7200),
        (90, 90),
        ("1:30:00", 5400),
        ("00:10:00", 600),
        ("2-12:00:00", 216_000),
        ("1-00:30", 88_200),
        ("100:00:00", 360_000),
    ],
)
def test_a_walltime_is_a_duration_or_a_scheduler_s_form(text: str | int, seconds: int) -> None:
    assert walltime_ms(text) == seconds * 1000


@pytest.mark.parametrize("text", ["90:00", "1:61:00", "1:00:99", "-1:00:00", "1:2", "", "x", True, None, [1]])
def test_other_walltimes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        walltime_ms(text)


@pytest.mark.parametrize(
    ("text", "amount", "per_s"),
    [("200/week", 200, 604_800), ("6/min", 6, 60), ("0.5 / h", 0.5, 3600), ("10/2h", 10, 7200), ("0/d", 0, 86_400)],
)
def test_a_rate_is_an_amount_per_time(text: str, amount: float, per_s: int) -> None:
    assert parse_rate(text) == Rate(amount, per_s * 1000)


@pytest.mark.parametrize("text", ["6", "6/", "/min", "6/fortnight", "-6/min", "6/0s", 6, True, None, "6/min/min"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rate(text)


@pytest.mark.parametrize("text", ["6/min", "200/week", "10/2h", "0.5/day", "3/90s"])
def test_a_rate_is_written_as_it_is_read(text: str) -> None:
    assert rate_text(parse_rate(text)) == text


def test_a_value_is_written_by_the_type_of_its_field() -> None:
    assert quantity_text(90_000, Duration) == "90s"
    assert quantity_text(1_800_000, Walltime | None) == "30m"
    assert quantity_text(8_000_000_000, Size | None) == "8 GB"
    assert quantity_text(Rate(6, 60_000), RateLimit) == "6/min"
    assert (quantity_text(4, int), quantity_text(None, Size | None)) == (4, None)
