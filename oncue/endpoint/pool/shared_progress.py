"""Shared memory of one worker and its pool: where the worker is, what it has finished but not sent yet, and where to stop.

    eight signed 64-bit numbers, then the finished tasks of the chunk that were not sent through the pipe yet

    CHUNK    number of the chunk                 STARTED  unix µs
    INDEX    task that runs in it; -1 none;      STOP     written by the pool: do not start what is at or behind this place
             below: -2 - i loads i's function    FIRST    index of the first finished task that is kept here
                                                 USED     bytes of them, each msgpack of Ended

A worker that is killed at any moment leaves here what it had finished, so its death costs the task that ran and no other, and
nothing is run twice. A pool that sees a long task can have the results of those before it, and take back those behind it.
Numbers are written in an order that is safe to read at any moment: the time before the index, the bytes before their count.
"""

from __future__ import annotations

import mmap
import os

import msgspec

from oncue.protocol.records import Ended

CHUNK, INDEX, STARTED, STOP, FIRST, USED = range(6)
HEAD_BYTES = 64
FINISHED_BYTES = 1 << 20
SIZE_BYTES = HEAD_BYTES + FINISHED_BYTES
NEVER = (1 << 63) - 1
_CHUNK_STEP = 1 << 20

_split = msgspec.msgpack.Decoder(Ended).decode


def position(chunk: int, index: int) -> int:
    """One number that orders all tasks a worker is given."""
    return chunk * _CHUNK_STEP + index


class SharedProgress:
    """Both sides map the same file. The lengths of the kept records are 4 bytes before each."""

    def __init__(self, fd: int) -> None:
        self.map = mmap.mmap(fd, SIZE_BYTES)
        self.numbers = memoryview(self.map)[:HEAD_BYTES].cast("q")

    @classmethod
    def fresh(cls, fd: int) -> SharedProgress:
        os.ftruncate(fd, SIZE_BYTES)
        progress = cls(fd)
        progress.numbers[INDEX], progress.numbers[STOP] = -1, NEVER
        return progress

    def current(self) -> tuple[int, int, int]:
        """(chunk, index, started_us); read twice, so that a worker that moves on meanwhile does not mix two places."""
        n = self.numbers
        while True:
            seen = n[CHUNK], n[INDEX], n[STARTED]
            if seen == (n[CHUNK], n[INDEX], n[STARTED]):
                return seen

    def finished(self) -> tuple[int, list[Ended]]:
        """(index of the first, the finished tasks that were not sent). Empty when it cannot be read whole."""
        first, used = self.numbers[FIRST], self.numbers[USED]
        data = bytes(self.map[HEAD_BYTES : HEAD_BYTES + used])
        found, at = [], 0
        try:
            while at < used:
                size = int.from_bytes(data[at : at + 4], "little")
                found.append(_split(data[at + 4 : at + 4 + size]))
                at += 4 + size
        except msgspec.MsgspecError:  # the worker sent them while this was read
            return first, []
        return first, found

    def close(self) -> None:
        self.numbers.release()
        self.map.close()
