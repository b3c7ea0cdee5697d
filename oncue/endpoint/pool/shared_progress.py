"""Shared memory of a worker and its pool: progress and unsent results.

    eight signed 64-bit numbers, then the finished tasks of the chunk that were not sent yet

    CHUNK    number of the chunk
    INDEX    task that runs in it; -1: none; below: -2 - i loads i's function
    STARTED  its start, unix µs
    STOP     written by the pool: do not start tasks at or behind this position
    FIRST    index of the first finished task in here
    USED     bytes of finished tasks, each msgpack of Ended

A worker that is killed at any moment leaves here what it had finished. So its death costs only the
task that ran, and nothing runs twice. A pool that sees a long task can read the results before it,
and requeue the tasks behind it. Numbers are written in an order that is safe to read at any
moment: the time before the index, the bytes before their count.

User code runs in the worker's process. So the file cannot shrink (a mapping of a shorter file is a
SIGBUS, also in the agent), the worker has no descriptor of it, forked children do not map it, and
the pool takes no number from it on trust.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys

import msgspec

from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import Ended

CHUNK, INDEX, STARTED, STOP, FIRST, USED = range(6)
HEAD_BYTES = 64
FINISHED_BYTES = 1 << 20
SIZE_BYTES = HEAD_BYTES + FINISHED_BYTES
NEVER = (1 << 63) - 1
CHUNK_STEP = 1 << 20
_READS = 100  # until two reads agree; code that scribbles in the worker must not hold the agent

_split = msgspec.msgpack.Decoder(Ended).decode


def position(chunk: int, index: int) -> int:
    """Return a number that orders all tasks of a worker."""
    return chunk * CHUNK_STEP + index


class SharedProgress:
    """The mapping, at either side.

    Each finished task has its length in 4 bytes before it.
    """

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, SIZE_BYTES)
        self.numbers = memoryview(self.map)[:HEAD_BYTES].cast("q")

    @classmethod
    def fresh(cls, fd: int) -> SharedProgress:
        """Map a new file, with no task and no stop."""
        os.ftruncate(fd, SIZE_BYTES)
        if sys.platform == "linux":
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            with contextlib.suppress(OSError):  # a plain file: there is no memfd here
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        progress = cls(fd)
        progress.numbers[INDEX], progress.numbers[STOP] = -1, NEVER
        return progress

    @classmethod
    def at_worker(cls, fd: int) -> SharedProgress:
        """Map the file for a worker, and close all descriptors of it."""
        lowest = os.dup(fd)  # the number that mmap's own copy of the descriptor gets
        os.close(lowest)
        progress = cls(fd)
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(lowest, fd):
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, lowest, inheritable=False)
                os.close(null)
        os.close(fd)
        if sys.platform == "linux":
            progress.map.madvise(mmap.MADV_DONTFORK)
        return progress

    def current(self) -> tuple[int, int, int]:
        """Return (chunk, index, started_us) of the running task.

        They are read twice, so that a worker that moves on meanwhile does not mix two tasks.
        """
        n = self.numbers
        for _ in range(_READS):
            seen = n[CHUNK], n[INDEX], n[STARTED]
            if seen == (n[CHUNK], n[INDEX], n[STARTED]):
                break
        return seen

    def finished(self) -> tuple[int, list[Ended]]:
        """Return (index of the first, unsent finished tasks).

        Empty if they cannot be read whole.
        """
        first, used = self.numbers[FIRST], self.numbers[USED]
        if first < 0 or not 0 <= used <= FINISHED_BYTES:
            return 0, []
        data = bytes(self.map[HEAD_BYTES : HEAD_BYTES + used])
        found, at = [], 0
        try:
            while at < used:
                size = int.from_bytes(data[at : at + 4], "little")
                found.append(_split(data[at + 4 : at + 4 + size]))
                at += 4 + size
        except DECODE_ERRORS:  # the worker sent them meanwhile
            return first, []
        return first, found

    def close(self) -> None:
        self.numbers.release()
        self.map.close()
