"""What the running task of a worker prints, told while it runs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from oncue.endpoint.pool.output_file import HEAD_BYTES, TAIL_BYTES

OUTPUT_US = 250_000  # between two looks
OUTPUT_STEP = 16 * 1024  # bytes told at once
PUNCH_BYTES = 8 << 20  # of output, then its middle is dropped


class LiveOutput:
    """Reads the worker's capture file, of which `fd` is a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._place = -1  # of the task
        self._told = 0  # bytes of its output
        self._looked_us = 0
        self._punched = 0

    def began(self, place: int) -> bool:
        """Whether the task at this place is another than the last time."""
        if place == self._place:
            return False
        self._place, self._told, self._punched = place, 0, HEAD_BYTES
        return True

    def look(self, now_us: int, still: Callable[[], bool]) -> tuple[int, bytes] | None:
        """(offset, text) of what is new, whole lines if there are any; None when there is nothing. `still`: whether the same
        task runs after it was read."""
        if now_us - self._looked_us < OUTPUT_US:
            return None
        self._looked_us = now_us
        size = os.fstat(self._fd).st_size
        if size - self._told > 4 * OUTPUT_STEP:  # it prints faster than anybody reads: go on near the end
            self._told = size - OUTPUT_STEP
        text = os.pread(self._fd, OUTPUT_STEP, self._told)
        found = None
        if text and still():
            text = text[: text.rfind(b"\n") + 1 or len(text)]
            found = self._told, text
            self._told += len(text)
        if size - self._punched > PUNCH_BYTES:
            punch(self._fd, self._punched, size - TAIL_BYTES * 4)
            self._punched = size - TAIL_BYTES * 4
        return found


def punch(fd: int, start: int, end: int) -> None:
    """Give the memory of a part of a file back, its size as it is; where the system cannot, it stays."""
    if sys.platform == "linux" and end > start:
        keep_size_punch_hole = 0x01 | 0x02
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate(fd, keep_size_punch_hole, ctypes.c_long(start), ctypes.c_long(end - start))
