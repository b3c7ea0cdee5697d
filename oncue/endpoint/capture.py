"""What a task prints, by Python, C or a child process: file descriptors 1 and 2 are one file that the pool gave, which is
empty between tasks. So the check after each task is one seek, and the pool can read what a running task has printed.
"""

from __future__ import annotations

import io
import os
import sys

from oncue.messages import OUTPUT_BYTES

HEAD_BYTES = OUTPUT_BYTES * 3 // 4  # kept of the start; the rest of OUTPUT_BYTES, less the note, of the end
_NOTE_BYTES = 200
TAIL_BYTES = OUTPUT_BYTES - HEAD_BYTES - _NOTE_BYTES


class Capture:
    def __init__(self) -> None:
        self.fd = os.dup(1)
        self.out, self.err = _text(1), _text(2)
        self.restore()

    def restore(self) -> None:
        """After a task that put something else there, or closed it."""
        for fd in (1, 2):
            if not _same(fd, self.fd):
                os.dup2(self.fd, fd)
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def take(self) -> bytes:
        """What was printed since the last time; for when the file is not empty."""
        found = read_output(self.fd)
        os.ftruncate(self.fd, 0)
        return found


def read_output(fd: int) -> bytes:
    """Start and end of the file, at most OUTPUT_BYTES, with a note of what was left out."""
    size = os.fstat(fd).st_size
    if size <= OUTPUT_BYTES:
        return os.pread(fd, size, 0)
    dropped = size - HEAD_BYTES - TAIL_BYTES
    note = f"\n[oncue: {dropped:,} of {size:,} bytes of output left out here]\n".encode()
    return os.pread(fd, HEAD_BYTES, 0) + note + os.pread(fd, TAIL_BYTES, size - TAIL_BYTES)


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
