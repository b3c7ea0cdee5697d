"""The time by which records grow old, when the system clock was wrong between two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.dispatcher.retention_clock import CONFIRM_US, SAVED_US, RetentionClock

DAY = 86_400 * 1_000_000
NOW = 20_000 * DAY


def run(file: Path, at_us: int, newest_us: int = 0, for_us: int = 0) -> int:
    """Run a server from `at_us` for `for_us`; return how old it thinks the time is at its end."""
    now = at_us
    clock = RetentionClock(file, lambda: now)
    clock.start(newest_us)
    while now < at_us + for_us:
        now += min(DAY, at_us + for_us - now)
        clock.save()
    return clock.now_us() - NOW


def test_a_clock_a_year_ahead_deletes_nothing_and_is_forgotten_when_put_right(tmp_path: Path) -> None:
    file = tmp_path / "clock.json"
    assert run(file, NOW) == 0
    assert run(file, NOW + 365 * DAY) == 0
    assert run(file, NOW + 365 * DAY + 60_000_000) == 60_000_000  # restarted with the wrong clock
    assert run(file, NOW + DAY) == DAY  # and put right


def test_a_server_that_was_away_for_a_week_deletes_after_it_has_run(tmp_path: Path) -> None:
    file = tmp_path / "clock.json"
    run(file, NOW)
    assert run(file, NOW + 7 * DAY, for_us=CONFIRM_US - 1) == CONFIRM_US - 1
    assert run(file, NOW + 7 * DAY + CONFIRM_US, for_us=1) == 7 * DAY + CONFIRM_US + 1


@pytest.mark.parametrize("pause", [0, 60_000_000, DAY])
def test_a_short_pause_counts_at_once(tmp_path: Path, pause: int) -> None:
    file = tmp_path / "clock.json"
    run(file, NOW)
    assert run(file, NOW + pause) == pause


def test_a_clock_behind_and_put_right_deletes_nothing_at_once(tmp_path: Path) -> None:
    file = tmp_path / "clock.json"
    run(file, NOW)
    assert run(file, NOW - 365 * DAY) == -365 * DAY
    assert run(file, NOW - 365 * DAY, for_us=DAY) == -364 * DAY
    assert run(file, NOW + DAY) == DAY
    assert run(file, NOW + 366 * DAY) == DAY


def test_a_folder_of_an_older_version_begins_with_its_newest_task(tmp_path: Path) -> None:
    assert run(tmp_path / "clock.json", NOW + 365 * DAY, newest_us=NOW) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"seen_us": "x"}'])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "clock.json"
    file.write_bytes(content)
    assert run(file, NOW, newest_us=NOW) == 0
    assert run(file, NOW + 365 * DAY) == 0


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(tmp_path / "missing" / "clock.json", NOW) == 0
    assert "could not be written" in caplog.text


def test_records_of_a_clock_that_was_behind_are_named_once_it_is_put_right(tmp_path: Path) -> None:
    file, behind = tmp_path / "clock.json", NOW - 365 * DAY
    run(file, NOW)
    run(file, behind, for_us=60_000_000)
    run(file, behind + 120_000_000, for_us=60_000_000)  # restarted with the wrong clock
    clock = RetentionClock(file, lambda: NOW + DAY)
    clock.start()
    assert clock.wrong_periods() == [(behind, behind + 180_000_000 + SAVED_US)]
    assert clock.now_us() == NOW + DAY
    again = RetentionClock(file, lambda: NOW + 2 * DAY)
    again.start()
    assert again.wrong_periods() == clock.wrong_periods()
