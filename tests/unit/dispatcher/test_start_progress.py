"""StartProgress: phase, share and time left of a start."""

from __future__ import annotations

import pytest

from oncue.dispatcher import start_progress
from oncue.dispatcher.start_progress import StartProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(start_progress.time, "monotonic", lambda: now[0])
    return now


def test_a_counted_phase_has_its_share_and_the_time_left(clock: list[float]) -> None:
    progress = StartProgress()
    assert progress.text == "opening the log"
    progress.begin("building", 1_000_000)
    assert progress.text == "building: 0 % (0 of 1,000,000 records)"
    clock[0] += 10
    progress.advance(250_000)
    assert progress.text == "building: 25 % (250,000 of 1,000,000 records), about 30 s left"
    clock[0] += 600
    progress.advance(260_000)
    assert progress.text.endswith(", about 29 min left")
    progress.advance(10_000)
    assert progress.text.endswith(", about 16.8 h left")
    progress.advance(2_000_000)
    assert progress.text == "building: 100 % (2,000,000 of 1,000,000 records), about 0 s left"
    progress.begin("starting")
    assert progress.text == "starting"


def test_it_is_logged_at_most_once_a_second(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="oncue.server")
    progress = StartProgress()
    progress.begin("building", 100)
    for n in range(100):
        clock[0] += 0.1
        progress.advance(n)

    assert 8 <= len(caplog.messages) <= 10
    assert caplog.messages[0].startswith("starting: building: ")
