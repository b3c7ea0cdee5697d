"""The process that holds a lock: found, signalled, never mistaken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.errors import Conflict
from oncue.processes.file_lock import holder_pid
from oncue.processes.lock_holder import LockHolder, lock_holder

HOLD = textwrap.dedent("""
    import fcntl, os, signal, sys, time
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pwrite(fd, sys.argv[2].encode() if sys.argv[2] else str(os.getpid()).encode(), 0)
    if sys.argv[3]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("held", flush=True)
    time.sleep(100)
""")


def hold(path: Path, pid: str = "", ignore: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), pid, ignore], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    with hold(lock) as process:
        yield process
        process.kill()


def test_the_holder_is_found_and_ended(lock: Path, process: subprocess.Popen[str]) -> None:
    with lock_holder(lock) or LockHolder(0) as holder:
        assert holder.pid == process.pid
        assert not holder.ended()
        assert holder.stop(20, kill=False) == "TERM"
        assert holder.ended()
    assert process.wait() == -signal.SIGTERM
    assert lock_holder(lock) is None


def test_a_stopped_process_is_continued_to_end(lock: Path, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    with lock_holder(lock) or LockHolder(0) as holder:
        assert holder.stop(20, kill=False) == "TERM"


def test_a_process_that_ignores_sigterm_is_killed_only_if_asked(lock: Path) -> None:
    with hold(lock, ignore="yes") as process, lock_holder(lock) or LockHolder(0) as holder:
        assert holder.stop(0.1, kill=False) == ""
        assert process.poll() is None
        assert holder.stop(0.1, kill=True) == "KILL"


def test_a_stale_file_names_nobody(lock: Path, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    lock.write_text(str(os.getpid()))
    assert holder_pid(lock) == 0
    assert lock_holder(lock) is None
    assert lock_holder(lock.with_name("none")) is None


def test_a_pid_that_is_not_the_holder_is_never_returned(lock: Path) -> None:
    """As of a process in another container, whose number here is another process's."""
    with subprocess.Popen(["sleep", "100"]) as stranger, hold(lock, pid=str(stranger.pid)) as holder:
        try:
            with pytest.raises(Conflict, match="locked, but not by a process that can be seen"):
                lock_holder(lock)
            assert stranger.poll() is None
        finally:
            holder.kill()
            stranger.kill()


def test_a_handle_of_an_ended_process_signals_nobody(lock: Path, process: subprocess.Popen[str]) -> None:
    with lock_holder(lock) or LockHolder(0) as holder:
        process.kill()
        process.wait()
        holder.send(signal.SIGTERM)
        assert holder.ended()
