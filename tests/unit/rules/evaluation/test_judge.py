"""Marks of tried rules, wasted time, and what an evaluator's process gets to see."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from oncue.rules.evaluation.killable_process import _environment
from oncue.rules.evaluation.owner_shares import EVENT_S, LENT_S, DecayingTime, EventShares
from oncue.rules.evaluation.trials import TrialFile


def test_a_mark_is_in_the_file_until_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    marks = TrialFile(path)

    marks.add("h1", "a")
    marks.add("h2", "b")
    assert json.loads(path.read_bytes()) == {"h1": "a", "h2": "b"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    marks.remove("h1")
    assert TrialFile(path).left == {"h2": "b"}
    marks.remove("h2")
    assert not path.exists()


def test_marks_of_a_former_process_are_kept_until_they_are_handled(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    TrialFile(path).add("old", "a")
    marks = TrialFile(path)

    marks.add("new", "b")
    marks.remove("new")
    assert TrialFile(path).left == {"old": "a"}
    marks.remove("old")
    assert TrialFile(path).left == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\x00", b"null"])
def test_a_damaged_file_of_marks_does_not_keep_a_server_from_starting(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trials.json"
    path.write_bytes(content)

    marks = TrialFile(path)

    assert marks.left == {}
    marks.add("h", "a")
    assert TrialFile(path).left == {"h": "a"}


def test_wasted_time_is_forgiven() -> None:
    now = [100.0]
    wasted = DecayingTime(0.5, lambda: now[0])

    wasted.add("ann", 5.0)
    wasted.add("ann", 5.0)
    assert (wasted.get("ann"), wasted.get("bob")) == (10.0, 0.0)
    now[0] += 10.0
    assert wasted.get("ann") == pytest.approx(5.0)
    now[0] += 200.0
    assert wasted.get("ann") == 0.0


def test_an_owner_to_whom_much_time_was_lent_keeps_a_share_of_each_event() -> None:
    now = [100.0]
    lent = DecayingTime(0.25, lambda: now[0])
    first = EventShares(lent)

    first.add("ann", LENT_S + 1)
    assert first.are_used_up("ann")
    assert not first.are_used_up("bob")
    second = EventShares(lent)
    second.add("ann", EVENT_S / 2)
    assert not second.are_used_up("ann")  # its quick rules are tested
    second.add("ann", EVENT_S)
    assert second.are_used_up("ann")
    now[0] += 4 * (LENT_S + 2)
    assert not second.are_used_up("ann")


def test_an_evaluator_gets_no_secrets() -> None:
    given = {"PATH": "/bin", "PYTHONPATH": "/x", "ONCUE_TOKEN": "t", "ONCUE_KAFKA_PASSWORD": "p", "AWS_SECRET": "s"}

    assert _environment(given) == {"PATH": "/bin", "PYTHONPATH": "/x"}
