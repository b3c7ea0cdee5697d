"""A lock of a file: one holder, who is named; a look at the holder is no holder."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from oncue.errors import Conflict, Invalid
from oncue.processes.file_lock import FileLock, holder_pid


def refusal(pid: int) -> Conflict:
    return Conflict(f"held by {pid}")


def test_one_at_a_time_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path, refusal):
        assert holder_pid(path) == os.getpid()
        for shared in (False, True):
            with pytest.raises(Conflict, match=f"held by {os.getpid()}"):
                FileLock(path, refusal, shared=shared)
    assert holder_pid(path) == 0
    FileLock(path, refusal).release()


def test_several_may_share_it_and_write_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("text")
    with FileLock(path, refusal, shared=True), FileLock(path, refusal, shared=True):
        with pytest.raises(Conflict, match="held by 0"):
            FileLock(path, refusal)
        with FileLock(tmp_path, refusal, shared=True):
            pass
    assert path.read_text() == "text"


def test_a_look_at_the_holder_keeps_nobody_out(tmp_path: Path) -> None:
    """It holds the lock for a moment, as another command may do while a server starts."""
    path = tmp_path / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_SH)
    timer = threading.Timer(0.03, os.close, (handle,))
    timer.start()
    FileLock(path, refusal).release()
    timer.join()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(Invalid, match="cannot be locked: No locks available"):
        FileLock(tmp_path / "lock", refusal)
