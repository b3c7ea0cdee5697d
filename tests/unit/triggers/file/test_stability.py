"""StabilityQueue, and files open for writing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oncue.triggers.file.stability import Fingerprint, StabilityQueue, WaitingFile, open_for_writing
from oncue.triggers.file.watch.base import CLOSED


def test_due_files_come_in_order() -> None:
    queue = StabilityQueue()
    for i, due in enumerate((3.0, 1.0, 2.0)):
        queue.push(("", f"{i}"), WaitingFile(CLOSED, 0, Fingerprint(1, 1, 1), due, True))
    queue.push(("", "1"), WaitingFile(CLOSED, 0, Fingerprint(1, 1, 2), 2.5, True))  # later than at first
    assert queue.next_due() == 2.0
    assert [key[1] for key, _ in queue.pop_due(2.6, 10)] == ["2", "1"]
    assert ("", "0") in queue
    assert len(queue) == 1
    assert queue.pop_due(2.6, 10) == []
    assert queue.pop(("", "0")) is not None
    assert queue.next_due() is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a lease")
def test_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb"):
        assert open_for_writing(str(path)) is True
        with path.open("rb"):
            assert open_for_writing(str(path)) is True
    with path.open("rb"):
        assert open_for_writing(str(path)) is False
    assert open_for_writing(str(tmp_path)) is None
    assert open_for_writing(str(tmp_path / "none")) is None
