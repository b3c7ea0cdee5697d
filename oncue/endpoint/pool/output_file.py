"""Reads the file that a worker's stdout and stderr go to."""

from __future__ import annotations

import os

from oncue.protocol.records import OUTPUT_BYTES

HEAD_BYTES = OUTPUT_BYTES * 3 // 4  # kept of the start
_NOTE_BYTES = 200  # room for the note of what was left out
TAIL_BYTES = OUTPUT_BYTES - HEAD_BYTES - _NOTE_BYTES  # kept of the end


def read_output(fd: int) -> bytes:
    """Return the file's start and end.

    At most OUTPUT_BYTES, with a note of what was left out.
    """
    size = os.fstat(fd).st_size
    if size <= OUTPUT_BYTES:
        return os.pread(fd, size, 0)
    dropped = size - HEAD_BYTES - TAIL_BYTES
    note = f"\n[oncue: {dropped:,} of {size:,} bytes of output left out here]\n".encode()
    return os.pread(fd, HEAD_BYTES, 0) + note + os.pread(fd, TAIL_BYTES, size - TAIL_BYTES)
