"""Diagnosis of a worker's exit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from oncue.endpoint.pool.exit_diagnosis import OomWatch, diagnose, start_failure
from oncue.endpoint.pool.protocol import EXIT_PIPES_CLOSED
from oncue.protocol.records import CANCELLED, LOST, TIMEOUT


@pytest.mark.parametrize(
    ("ending", "code", "oom", "status", "words"),
    [
        ("timeout", -signal.SIGKILL, True, TIMEOUT, "its timeout of 1.5 s"),
        ("cancel", -signal.SIGTERM, False, CANCELLED, "was cancelled"),
        ("close", 0, False, LOST, "the endpoint was stopped"),
        ("pipe", -signal.SIGKILL, False, LOST, "closed the worker's descriptors"),
        ("", EXIT_PIPES_CLOSED, False, LOST, "closed the worker's descriptors"),
        ("", -signal.SIGKILL, True, LOST, "probably out of memory"),
        ("", -signal.SIGKILL, False, LOST, "SIGKILL), not by oncue"),
        ("", -signal.SIGSEGV, True, LOST, "died of SIGSEGV"),
        ("", -250, False, LOST, "died of signal 250"),
        ("", 128 + signal.SIGTERM, False, LOST, "ended by SIGTERM"),
        ("", 3, False, LOST, "exited with code 3"),
    ],
)
def test_each_exit_has_its_status_and_its_reason(ending: str, code: int, oom: bool, status: int, words: str) -> None:
    found, failure = diagnose(ending, 1_500, code, oom)
    assert found == status
    assert words in failure.message


def test_an_oom_kill_is_reported_once(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 9\noom_kill 4\n")
    watch = OomWatch(vmstat)
    assert not watch.check()
    vmstat.write_text("pgfault 9\noom_kill 5\n")
    assert watch.check()
    assert not watch.check()


def test_without_a_count_there_is_no_oom(tmp_path: Path) -> None:
    assert not OomWatch(tmp_path / "missing").check()


def test_a_failed_start_shows_the_last_lines_and_a_command_to_try() -> None:
    message = start_failure("/opt/python", 1, b"one\ntwo\nthree\nfour\nImportError: x\n")
    assert "two | three | four | ImportError: x" in message
    assert "one" not in message.splitlines()[0]
    assert "/opt/python -c 'import oncue.endpoint.worker'" in message
