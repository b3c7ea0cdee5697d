"""Times of `--since` and `--until`, and states, as people write them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from oncue.cli.tasks.filters import State
from oncue.cli.times import time_us
from oncue.errors import Invalid


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOW = datetime(2026, 11, 30, 13, 30, 15, 500_000, timezone(timedelta(hours=1)))  # a Monday


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2h", "2026-11-30T11:30:15.5+01:00"),
        ("90m", "2026-11-30T12:00:15.5+01:00"),
        ("1h30m", "2026-11-30T12:00:15.5+01:00"),
        ("2 hours ago", "2026-11-30T11:30:15.5+01:00"),
        ("1 day", "2026-11-29T13:30:15.5+01:00"),
        ("1.5h", "2026-11-30T12:00:15.5+01:00"),
        ("2w", "2026-11-16T13:30:15.5+01:00"),
        ("now", "2026-11-30T13:30:15.5+01:00"),
        ("today", "2026-11-30T00:00+01:00"),
        ("Yesterday", "2026-11-29T00:00+01:00"),
        ("yesterday 18:00", "2026-11-29T18:00+01:00"),
        ("friday", "2026-11-27T00:00+01:00"),
        ("mon", "2026-11-30T00:00+01:00"),
        ("9:05", "2026-11-30T09:05+01:00"),
        ("09:05:07", "2026-11-30T09:05:07+01:00"),
        ("2026-11-01", "2026-11-01T00:00+01:00"),
        ("2026-07-01", "2026-07-01T00:00+02:00"),  # summer time
        ("2026-11-01 12:00", "2026-11-01T12:00+01:00"),
        ("2026-11-01T12:00:00Z", "2026-11-01T12:00+00:00"),
        ("2026-11-01T12:00:00.25-05:00", "2026-11-01T12:00:00.25-05:00"),
        ("@1700000000", "2023-11-14T22:13:20+00:00"),
    ],
)
def test_times(text: str, wanted: str) -> None:
    assert time_us(text, NOW) == round(datetime.fromisoformat(wanted).timestamp() * 1e6)


@pytest.mark.parametrize(
    "text", ["", "soon", "5x", "25:00", "2026-13-01", "-2h", "1900-01-01", "@x", "99999999999w", "mo"]
)
def test_what_is_no_time_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(Invalid) as e:
        time_us(text, NOW)
    assert "yesterday" in e.value.remedy


def test_midnight_is_local_after_the_clocks_changed() -> None:
    after = datetime(2026, 10, 26, 0, 30, tzinfo=timezone(timedelta(hours=1)))  # they changed on the 25th
    assert time.strftime("%F %T", time.localtime(time_us("yesterday", after) / 1e6)) == "2026-10-25 00:00:00"
    assert os.environ["TZ"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("given", "states"),
    [("fail", "failed"), ("RUN", "running"), ("timed-out", "timed_out"), ("open", "open"), ("f, lost", "failed,lost")],
)
def test_the_beginning_of_a_state_is_enough(given: str, states: str) -> None:
    assert State().convert(given, None, None) == states


@pytest.mark.parametrize("given", ["c", "happy", "failed,x"])
def test_other_states_are_refused(given: str) -> None:
    with pytest.raises(Invalid) as e:
        State().convert(given, None, None)
    assert "succeeded" in e.value.remedy
