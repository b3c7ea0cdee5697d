"""Reads what a worker's running task prints, while it runs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from oncue.endpoint.pool.output_file import HEAD_BYTES, TAIL_BYTES

OUTPUT_US = 250_000  # between two reads
OUTPUT_STEP = 16 * 1024  # bytes of one report
PUNCH_BYTES = 8 << 20  # of output, then its middle is dropped


class LiveOutput:
    """Reads the worker's capture file, of which `fd` is a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = -1  # of the task
        self._read_bytes = 0  # bytes of its output
        self._polled_us = 0
        self._punched = HEAD_BYTES

    def start_task(self, position: int) -> bool:
        """Return True if the task at this position was not running at the last call."""
        if position == self._position:
            return False
        self._position, self._read_bytes = position, 0
        return True

    def poll(self, now_us: int, same_task: Callable[[], bool]) -> tuple[int, bytes] | None:
        """Return (offset, text) of new output, or None without any.

        The text is whole lines, if there are any. `same_task` is called after the read; it returns
        True if the same task still runs.
        """
        if now_us - self._polled_us < OUTPUT_US:
            return None
        self._polled_us = now_us
        size = os.fstat(self._fd).st_size
        if size - self._read_bytes > 4 * OUTPUT_STEP:
            self._read_bytes = size - OUTPUT_STEP  # it prints faster than output is sent: skip
        text = os.pread(self._fd, OUTPUT_STEP, self._read_bytes)
        found = None
        if text and same_task():
            text = text[: text.rfind(b"\n") + 1 or len(text)]
            found = self._read_bytes, text
            self._read_bytes += len(text)
        return found

    def punch(self) -> None:
        """Drop the middle of long output: it is memory, and nobody will read it."""
        size = os.fstat(self._fd).st_size
        if size < self._punched:  # the next task's
            self._punched = HEAD_BYTES
        if size - self._punched > PUNCH_BYTES:
            punch(self._fd, self._punched, size - TAIL_BYTES * 4)
            self._punched = size - TAIL_BYTES * 4


def punch(fd: int, start: int, end: int) -> None:
    """Free the memory of a part of a file, keeping its size.

    Does nothing where that is not supported.
    """
    if sys.platform == "linux" and end > start:
        keep_size_punch_hole = 0x01 | 0x02
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate(fd, keep_size_punch_hole, ctypes.c_long(start), ctypes.c_long(end - start))
