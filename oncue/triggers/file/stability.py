"""Completeness of files: fingerprints, open writers, StabilityQueue."""

from __future__ import annotations

import errno
import heapq
import os
import signal
import sys
from typing import NamedTuple

_CAP_LEASE = 1 << 28  # linux/capability.h
FileKey = tuple[str, str]  # (folder relative to the watched one, name)


class Fingerprint(NamedTuple):
    """Identity of one state of a file.

    Without the device: its number changes with each mount.
    """

    ino: int
    size: int
    mtime_ns: int


def fingerprint(st: os.stat_result) -> Fingerprint:
    """Return the fingerprint of a stat result."""
    ino = st.st_ino if st.st_ino < 1 << 63 else st.st_ino - (1 << 64)  # as SQLite's
    return Fingerprint(ino, st.st_size, st.st_mtime_ns)


def open_for_writing(path: str, follow: bool = False) -> bool | None:
    """Return True if the file is open for writing; None: unknown.

    Covers the processes of this machine. `follow` symbolic links.

    Linux grants a read lease only on a file that nobody has open for writing (fcntl(2),
    F_SETLEASE), to the file's owner or with CAP_LEASE. The close releases the lease at once; a
    writer that opens the file meanwhile waits those microseconds.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError:
        return None
    try:
        # A broken lease sends SIGIO, which would end the process; SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False
    except OSError as e:  # EINVAL: it is no regular file, or its filesystem has no leases
        return True if e.errno == errno.EAGAIN else None
    finally:
        os.close(fd)


def may_ask_about_others() -> bool:
    """Return True if `open_for_writing` can tell for files of other users too."""
    try:
        with open("/proc/thread-self/status") as file:
            found = next((line for line in file if line.startswith("CapEff:")), "")
        return bool(int(found.split()[1], 16) & _CAP_LEASE)
    except (OSError, ValueError, IndexError):
        return False


class WaitingFile(NamedTuple):
    """A file that is checked again when due."""

    bits: int  # kinds of all its notices so far (watch/base.py)
    at_us: int  # when it was noticed first
    seen: Fingerprint
    due: float  # monotonic seconds
    still: bool  # True: ready if unchanged when due; False: evaluated anew
    tries: int = 0  # checks so far that found it open for writing


class StabilityQueue:
    """Waiting files, ordered by due time."""

    def __init__(self) -> None:
        self._files: dict[FileKey, WaitingFile] = {}
        self._heap: list[tuple[float, FileKey]] = []

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: FileKey) -> bool:
        return key in self._files

    def get(self, key: FileKey) -> WaitingFile | None:
        return self._files.get(key)

    def push(self, key: FileKey, waiting: WaitingFile) -> None:
        """Add a file, or replace its entry."""
        self._files[key] = waiting
        heapq.heappush(self._heap, (waiting.due, key))

    def pop(self, key: FileKey) -> WaitingFile | None:
        """Remove a file. Its entry in the heap stays until `next_due` meets it."""
        return self._files.pop(key, None)

    def next_due(self) -> float | None:
        """Return the earliest due time in monotonic seconds; None if no file waits."""
        while self._heap:
            due, key = self._heap[0]
            waiting = self._files.get(key)
            if waiting is not None and waiting.due == due:
                return due
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now: float, limit: int) -> list[tuple[FileKey, WaitingFile]]:
        """Remove and return the files that are due, at most `limit`."""
        out: list[tuple[FileKey, WaitingFile]] = []
        while len(out) < limit:
            due = self.next_due()
            if due is None or due > now:
                break
            _, key = heapq.heappop(self._heap)
            out.append((key, self._files.pop(key)))
        return out
