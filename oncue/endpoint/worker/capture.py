"""What a task prints, by Python, C or a child process: file descriptors 1 and 2 are one file that the pool gave, which is
empty between tasks. So the pool can read what a running task has printed, and the check after each task is three seeks:

    capture.fd ──► to MARK beyond its end: at MARK when it is empty      1, 2 ──► there too: they are that open file

A descriptor that was closed or put elsewhere is not there; a seek that only asks does nothing to a file of the user's.
"""

from __future__ import annotations

import io
import os
import sys

from oncue.endpoint.pool.output_file import read_output

MARK = 1_000_003  # an offset that no other file happens to be at; what is written is appended, wherever the offset is


class Capture:
    def __init__(self) -> None:
        self.fd = os.dup(1)
        self._null = os.open(os.devnull, os.O_RDWR)
        self.out, self.err = _text(1), _text(2)
        self.restore()

    def restore(self) -> None:
        """After a task that put something else there, or closed it."""
        for fd, right in ((0, self._null), (1, self.fd), (2, self.fd)):
            if not _same(fd, right):
                os.dup2(right, fd)
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def collect(self) -> bytes:
        """After each task: what it printed; 1 and 2 are right again."""
        end = os.lseek(self.fd, MARK, 2)
        try:
            right = os.lseek(1, 0, 1) == end and os.lseek(2, 0, 1) == end
        except OSError:  # closed, or a pipe
            right = False
        if not right:
            self.restore()
        return self._drain() if end != MARK else b""

    def no_input(self) -> bool:
        """0 is /dev/null, which is at 0 wherever one seeks."""
        try:
            return os.lseek(0, 1, 1) == 0
        except OSError:
            return False

    def _drain(self) -> bytes:
        """What was printed since the last time; for when the file is not empty."""
        found = read_output(self.fd)
        os.ftruncate(self.fd, 0)
        return found


class _Text(io.TextIOWrapper):
    """A function that closes it closes it for itself only; to look after each task would cost half a microsecond."""

    def close(self) -> None:
        pass


def _text(fd: int) -> io.TextIOWrapper:
    """Unbuffered, so that what C and child processes print stands in its place."""
    raw = io.FileIO(fd, "w", closefd=False)
    return _Text(raw, "utf-8", errors="backslashreplace", write_through=True)


def _same(a: int, b: int) -> bool:
    try:
        one, two = os.fstat(a), os.fstat(b)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
