"""Captures what a task prints by Python, C or a child process.

Descriptors 1 and 2 are one file of the pool's, which is empty between tasks. So the pool can read
a running task's output, and the check after each task is three seeks:

    capture.fd ──► MARK bytes beyond its end: at MARK if it is empty
    1, 2 ────────► the same offset: they share the open file

A descriptor that was closed or redirected is elsewhere. Asking for its offset changes nothing in a
user's file.
"""

from __future__ import annotations

import io
import os
import sys

from oncue.endpoint.pool.output_file import read_output

#: An unlikely offset for any other file. Writes append, wherever the offset is.
MARK = 1_000_003


class Capture:
    """The output file, and descriptors 0, 1 and 2 as a task must find them."""

    def __init__(self) -> None:
        self.fd = os.dup(1)
        self._null = os.open(os.devnull, os.O_RDWR)
        self.out, self.err = _text(1), _text(2)
        self.restore()

    def restore(self) -> None:
        """Restore descriptors and streams that a task has replaced or closed."""
        for fd, right in ((0, self._null), (1, self.fd), (2, self.fd)):
            if not _same(fd, right):
                os.dup2(right, fd)
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def collect(self) -> bytes:
        """Return what the task printed, and restore 1 and 2 if needed.

        Called after each task.
        """
        end = os.lseek(self.fd, MARK, 2)
        try:
            right = os.lseek(1, 0, 1) == end and os.lseek(2, 0, 1) == end
        except OSError:  # closed, or a pipe
            right = False
        if not right:
            self.restore()
        return self._drain() if end != MARK else b""

    def no_input(self) -> bool:
        """Return True if 0 is /dev/null, which is at 0 after any seek."""
        try:
            return os.lseek(0, 1, 1) == 0
        except OSError:
            return False

    def _drain(self) -> bytes:
        """Return the output since the last call, and empty the file."""
        found = read_output(self.fd)
        os.ftruncate(self.fd, 0)
        return found


class _Text(io.TextIOWrapper):
    """A stream that a function cannot close.

    Checking after each task would cost 0.5 µs.
    """

    def close(self) -> None:
        pass


def _text(fd: int) -> io.TextIOWrapper:
    """Open a stream, unbuffered: output of C and child processes keeps its order."""
    raw = io.FileIO(fd, "w", closefd=False)
    return _Text(raw, "utf-8", errors="backslashreplace", write_through=True)


def _same(a: int, b: int) -> bool:
    try:
        one, two = os.fstat(a), os.fstat(b)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
