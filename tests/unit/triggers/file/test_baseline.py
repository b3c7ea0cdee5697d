"""Baseline: which files existed before the trigger, by the ledger and their times."""

import os
from pathlib import Path

import msgspec

from oncue.clocks.process import now_us
from oncue.triggers.file.baseline import SKEW_S, TICK_S, Baseline
from oncue.triggers.file.ledger import EXISTING, FileRow, Ledger
from oncue.triggers.file.options import FileOptions, FileSpec, read_options

HOUR_US = 3_600_000_000


def spec(tmp: Path, **options: object) -> FileSpec:
    return read_options("t", msgspec.convert({"path": str(tmp), **options}, FileOptions))


def nobody() -> bool:
    return False


def changed(ctime_us: int) -> os.stat_result:
    """Return the stat of a file with this ctime."""
    return os.stat_result((0o100644, 1, 1, 1, 0, 0, 1, 0, 0, 0), {"st_ctime_ns": ctime_us * 1000})


def test_the_initial_scan_compares_no_times(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    base = Baseline(spec(tmp_path), ledger, deployed_us=now_us())
    for at_us in (1, now_us(), now_us() + HOUR_US):  # the file server's clock is ahead
        assert base.existed("", "a", changed(at_us), nobody)
    assert not base.existed("", "a", changed(now_us()), lambda: True)  # it is open for writing
    assert base.existed("", "a", changed(1), lambda: True)  # unchanged since yesterday
    base.scan_finished()
    assert not base.open
    assert not base.existed("", "a", changed(1), nobody)
    assert not Baseline(spec(tmp_path), ledger).open


def test_by_time_files_in_doubt_are_new(tmp_path: Path) -> None:
    at_us = now_us() - HOUR_US
    base = Baseline(spec(tmp_path), Ledger(tmp_path / "l.db"), at_us, by_time=lambda: True)
    assert base.existed("", "a", changed(at_us - round(1.1e6 * TICK_S)), nobody)
    assert not base.existed("", "a", changed(at_us - round(0.9e6 * TICK_S)), nobody)
    assert not base.existed("", "a", changed(at_us), nobody)
    base.network = True
    assert base.existed("", "a", changed(at_us - round(1.1e6 * SKEW_S)), nobody)
    assert not base.existed("", "a", changed(at_us - round(0.9e6 * SKEW_S)), nobody)


def test_an_old_deploy_without_a_ledger_has_lost_it(tmp_path: Path) -> None:
    """Files that came since the deploy must not all fire again."""
    base = Baseline(spec(tmp_path), Ledger(tmp_path / "l.db"), now_us() - 48 * HOUR_US, by_time=lambda: True)
    assert base.existed("", "a", changed(now_us() - HOUR_US), nobody)


def test_a_clock_that_was_set_back_gives_no_deploy_in_the_future(tmp_path: Path) -> None:
    base = Baseline(spec(tmp_path), Ledger(tmp_path / "l.db"), now_us() + HOUR_US, by_time=lambda: True)
    assert not base.existed("", "a", changed(now_us()), nobody)


def test_a_scan_cut_short_resumes_with_the_time_of_its_deploy(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    at_us = now_us() - HOUR_US
    assert not Baseline(spec(tmp_path), ledger, at_us).resumed
    again = Baseline(spec(tmp_path), ledger, now_us(), by_time=lambda: True)
    assert again.resumed
    assert again.existed("", "a", changed(at_us - HOUR_US), nobody)
    assert not again.existed("", "a", changed(at_us + 1), nobody)


def test_globs_that_change_before_the_scan_has_ended(tmp_path: Path) -> None:
    """A file belongs to the first deploy that selected it; only the unanswered deploy compares no times."""
    ledger = Ledger(tmp_path / "l.db")
    first_us = now_us() - HOUR_US
    Baseline(spec(tmp_path, glob="*.h5"), ledger, first_us)
    base = Baseline(spec(tmp_path, glob="*.{h5,tif}"), ledger, now_us())
    assert not base.resumed
    assert not base.existed("", "a.h5", changed(first_us + 1), nobody)
    assert base.existed("", "a.h5", changed(first_us - HOUR_US), nobody)
    assert base.existed("", "a.tif", changed(first_us + 1), nobody)
    base.scan_finished()
    assert not Baseline(spec(tmp_path, glob="*.{h5,tif}"), ledger).open
    back = Baseline(spec(tmp_path, glob="*.h5"), ledger)
    assert not back.existed("", "a.h5", changed(1), nobody)


def test_going_back_to_scanned_globs_ends_the_scan_for_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    Baseline(spec(tmp_path, glob="*.h5"), ledger).scan_finished()
    Baseline(spec(tmp_path, glob="*.tif"), ledger)
    assert not Baseline(spec(tmp_path, glob="*.h5"), ledger).open
    fresh = Baseline(spec(tmp_path, glob="*.tif"), ledger)
    assert not fresh.resumed
    assert fresh.existed("", "a.tif", changed(now_us()), nobody)


def test_files_of_a_folder_missing_at_the_deploy_are_new(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.db")
    base = Baseline(spec(tmp_path), ledger)
    base.folder_missing()
    assert not base.existed("", "a", changed(1), nobody)  # it came later
    assert not base.open


def test_a_folder_that_goes_away_during_the_scan(tmp_path: Path) -> None:
    """Files in it when it comes back count as existing."""
    ledger = Ledger(tmp_path / "l.db")
    base = Baseline(spec(tmp_path), ledger)
    base.folder_found()
    ledger.store([FileRow("", "a", EXISTING, 1, 1, 1, 1)])
    base.folder_missing()
    assert base.existed("", "b", changed(1), nobody)
    again = Baseline(spec(tmp_path), ledger)
    again.folder_missing()
    assert again.existed("", "b", changed(1), nobody)


def test_a_folder_missing_at_a_restart_does_not_count_as_new(tmp_path: Path) -> None:
    """The server died between the deploy's record and the initial scan; then a disk is mounted late."""
    base = Baseline(spec(tmp_path), Ledger(tmp_path / "l.db"), now_us() - 1, by_time=lambda: True)
    base.folder_missing()
    assert base.existed("", "a", changed(1), nobody)


def test_existing_true_needs_no_initial_scan(tmp_path: Path) -> None:
    base = Baseline(spec(tmp_path, existing=True), Ledger(tmp_path / "l.db"))
    assert not base.open
    assert not base.existed("", "a", changed(1), nobody)
