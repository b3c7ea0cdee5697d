"""Reads the file that a worker's stdout and stderr go to."""

from __future__ import annotations

import os

from oncue.protocol.records import OUTPUT_BYTES
from oncue.text.progress import last_states

HEAD_BYTES = OUTPUT_BYTES * 3 // 4  # kept of the start
_NOTE_BYTES = 200  # room for the note of what was left out
PROGRESS_BYTES = 16 << 20  # of output, with progress bars, that is read as a whole
_BLOCK = 1 << 18
TAIL_BYTES = OUTPUT_BYTES - HEAD_BYTES - _NOTE_BYTES  # kept of the end


def read_output(fd: int) -> bytes:
    """Return the file's start and end, with the last state of each line.

    At most OUTPUT_BYTES, with a note of what was left out.
    """
    size = os.fstat(fd).st_size
    if size <= OUTPUT_BYTES:
        return _finished(os.pread(fd, size, 0))
    head = os.pread(fd, HEAD_BYTES, 0)
    if b"\r" in head and (text := _last_states_of(fd, size)) is not None:
        return text
    dropped = size - HEAD_BYTES - TAIL_BYTES
    note = f"\n[oncue: {dropped:,} of {size:,} bytes of output left out here]\n".encode()
    return _finished(head) + note + _finished(os.pread(fd, TAIL_BYTES, size - TAIL_BYTES))


def _last_states_of(fd: int, size: int) -> bytes | None:
    """Return the last states of all lines; None if they, or the file, are too long."""
    text = b""
    if size > PROGRESS_BYTES:
        return None
    for at in range(0, size, _BLOCK):
        text = last_states(text + os.pread(fd, _BLOCK, at))
        if len(text) > OUTPUT_BYTES:
            return None
    return _finished(text)


def _finished(text: bytes) -> bytes:
    return last_states(text).rstrip(b"\r") if b"\r" in text else text
