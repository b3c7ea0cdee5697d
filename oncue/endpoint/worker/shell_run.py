"""Runs the script of a shell function in a child process.

Its stdout and stderr are files, however large they get. What it prints is copied to the worker's
own output meanwhile, as far as that keeps up: people who follow the task see it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oncue.endpoint.pool.limits import THREADS
from oncue.endpoint.pool.task_folders import STDERR, STDOUT
from oncue.endpoint.worker.task_usage import note_child
from oncue.errors import Invalid
from oncue.protocol.records import OUTPUT_BYTES

COPY_S = 0.1  # between two looks at what was printed
COPY_BYTES = 256 * 1024  # of one stream at once; older text is skipped
TAIL_BYTES = 64 * 1024  # that follow what was skipped
END_S = 1.5  # for a script that is told to end; the pool kills what is left soon after
HEAD_BYTES = OUTPUT_BYTES // 4  # of a stream in the result


class LiveCopy:
    """Copies what is added to a file to descriptor 1."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._at = 0

    def copy(self) -> None:
        size = os.fstat(self._fd).st_size
        if size - self._at > COPY_BYTES:
            start = size - TAIL_BYTES
            os.write(1, f"\n[oncue: {start - self._at:,} bytes are only in the file]\n".encode())
            self._at = start
        while self._at < size and (text := os.pread(self._fd, TAIL_BYTES, self._at)):
            os.write(1, text)
            self._at += len(text)

    def close(self) -> None:
        os.close(self._fd)


def run_script(words: Sequence[str], env: Mapping[str, str], cwd: Path, folder: Path) -> int:
    """Run a command until it ends. Return its exit code, of a signal 128 + its number.

    stdout and stderr are files in `folder`. Raises Invalid, OSError.
    """
    if not cwd.is_dir():
        raise Invalid(f"the working directory {cwd} does not exist", remedy="make it, or state another one: cwd")
    out, err = folder / STDOUT, folder / STDERR
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={name: _as_bytes(value) for name, value in {**env, "PWD": str(cwd)}.items()},
        )
    copies = [LiveCopy(out), LiveCopy(err)]
    try:
        _await(process, copies)
    except BaseException:  # the task is stopped: the script was told, too
        _await_end(process, copies)
        raise
    finally:
        for copy in copies:
            copy.close()
    code = process.returncode
    return 128 - code if code < 0 else code


def _as_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def interpreter_of(given: str) -> list[str]:
    """Return the command line of the shell. Raises Invalid if there is none."""
    words = shlex.split(given) if given else [shutil.which("bash") or "sh"]
    if shutil.which(words[0]) is None:
        raise Invalid(f"there is no {words[0]!r} here", remedy="state another interpreter, such as sh")
    return words


def _await(process: subprocess.Popen[bytes], copies: list[LiveCopy], limit_s: float = float("inf")) -> None:
    """Copy output until the process has ended."""
    deadline = time.monotonic() + limit_s
    ended = select.poll()
    fd = os.pidfd_open(process.pid) if sys.platform == "linux" else -1
    try:
        if fd >= 0:
            ended.register(fd, select.POLLIN)
        while not _has_ended(process) and time.monotonic() < deadline:
            if fd >= 0:
                ended.poll(COPY_S * 1000)
            else:
                _wait(process)
            for copy in copies:
                copy.copy()
    finally:
        if fd >= 0:
            os.close(fd)
    for copy in copies:
        copy.copy()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return True if the script has ended; note how much memory it had at most."""
    if process.returncode is None:
        try:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has reaped it
            return process.poll() is not None
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            note_child(used)
    return process.returncode is not None


def _await_end(process: subprocess.Popen[bytes], copies: list[LiveCopy]) -> None:
    with contextlib.suppress(OSError):
        if os.getpgid(process.pid) != os.getpgrp():  # the pool signals the process group
            process.terminate()
    _await(process, copies, END_S)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(COPY_S)


def head_of(path: Path) -> str:
    """Return the start of a stream as text; of a long one with a note of its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        text = file.read(HEAD_BYTES).decode("utf-8", "replace")
    return text if size <= HEAD_BYTES else f"{text}\n[oncue: the first {HEAD_BYTES:,} of {size:,} bytes]\n"


def tail_of(path: Path, size: int = 4_000) -> str:
    """Return the end of a stream as text."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode("utf-8", "replace")


def thread_variables(cores: int) -> dict[str, str]:
    """Return the variables by which numerical libraries use so many cores."""
    return dict.fromkeys(THREADS, str(cores)) if cores else {}
