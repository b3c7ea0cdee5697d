"""FileEvaluator: decides whether a noticed file fires, waits or is skipped.

Each decision is recorded in the ActivityLog.
"""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from oncue.clocks.process import now_us
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.ledger import FIRED, SKIPPED_FILE, FileRow, KnownFile
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.readiness import BUSY, BUSY_WHY, SKIPPED, STABILIZING, cause, check_readiness
from oncue.triggers.file.stability import (
    FileKey,
    Fingerprint,
    StabilityQueue,
    WaitingFile,
    fingerprint,
    open_for_writing,
)
from oncue.triggers.file.watch.base import FOUND, RENAMED

BUSY_S = 1.0  # interval between checks of a file that is open for writing


class PendingFile(NamedTuple):
    """A file that was noticed and is not decided yet."""

    bits: int  # kinds of its notices (watch/base.py)
    at_us: int
    seen: Fingerprint | None  # set: it fires if it still has this fingerprint
    busy: bool = False  # it was open for writing at the last check


class FileEvaluator:
    """Decides about files. Used in the watcher's thread only."""

    def __init__(self, spec: FileSpec, activity: ActivityLog) -> None:
        self.stability = StabilityQueue()
        self.in_flight: dict[FileKey, Fingerprint] = {}  # published, not yet durable
        self.network = ""  # type of the network filesystem that holds the folder; "": local
        self._spec, self._activity, self._root = spec, activity, os.fspath(spec.root)
        self._skipped: list[FileRow] = []

    def drain_skipped(self) -> list[FileRow]:
        """Return the files skipped since the last call, for the ledger.

        Scans ignore recorded files that have not changed.
        """
        skipped, self._skipped = self._skipped, []
        return skipped

    def writers(self, key: FileKey) -> bool | None:
        """Return True if the file is open for writing; None: unknown."""
        return None if self.network else open_for_writing(self.path(key))

    def path(self, key: FileKey) -> str:
        return f"{self._root}/{key[0]}/{key[1]}" if key[0] else f"{self._root}/{key[1]}"

    def relative(self, key: FileKey) -> str:
        return f"{key[0]}/{key[1]}" if key[0] else key[1]

    def decide(
        self, key: FileKey, pending: PendingFile, known: KnownFile | None
    ) -> tuple[os.stat_result, Fingerprint, str] | None:
        """Return (stat, fingerprint, cause) if the file fires, else None."""
        waited = self.stability.pop(key)
        bits = pending.bits | waited.bits if waited else pending.bits
        st = self._stat(key)
        if st is None:
            return None
        seen = fingerprint(st)
        repeat = self._why_no_repeat(key, bits, seen, known)
        if repeat is not None:
            if repeat:
                self._skip(key, repeat)
            return None
        if pending.seen == seen:
            return st, seen, cause(bits, waited=True)
        readiness, seconds, why = check_readiness(self._spec, bits, lambda: self.writers(key))
        if pending.seen is not None and readiness != BUSY:
            readiness, seconds, why = STABILIZING, max(seconds, self._spec.stable_s), "it has changed meanwhile"
        if readiness == SKIPPED:
            self._skipped.append(FileRow(*key, SKIPPED_FILE, *seen, now_us()))
            self._skip(key, why)
            return None
        if readiness in (STABILIZING, BUSY):
            still = readiness == STABILIZING
            due = time.monotonic() + (seconds if still else BUSY_S)
            self.stability.push(key, WaitingFile(bits, pending.at_us, seen, due, still))
            if not (pending.busy and why == BUSY_WHY):
                self._activity.record_waiting(self.relative(key), why)
            return None
        return st, seen, cause(bits, waited=False)

    def _stat(self, key: FileKey) -> os.stat_result | None:
        """Return the stat of a regular file; skip anything else."""
        path = self.path(key)
        try:
            st = os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                if not self._spec.links:
                    self._skip(key, "it is a symbolic link (symlinks: ignore)")
                    return None
                st = os.stat(path)
        except OSError as e:
            gone = "it was gone before it was ready" if isinstance(e, FileNotFoundError) else e.strerror
            self._skip(key, f"{gone}")
            return None
        if not stat.S_ISREG(st.st_mode):
            if not stat.S_ISDIR(st.st_mode):
                self._skip(key, "it is not a regular file")
            return None
        return st

    def _why_no_repeat(self, key: FileKey, bits: int, seen: Fingerprint, known: KnownFile | None) -> str | None:
        """Return why this state does not fire again; None: it may fire.

        "": a reason that is not worth recording.
        """
        in_flight = self.in_flight.get(key)
        if in_flight is not None and (in_flight == seen or self._spec.never):
            return ""
        if known is None or known.state == SKIPPED_FILE:
            return None
        if known.state == FIRED:
            if self._spec.never:
                return "it has fired before (refire: never)"
            if not known.is_same(seen):
                return None
            return "" if bits & FOUND else "it is unchanged since it fired"
        if not known.is_same(seen) or bits & RENAMED or self._spec.existing:
            return None
        return "" if bits & FOUND else "it is unchanged since the trigger was deployed"

    def _skip(self, key: FileKey, why: str) -> None:
        self._activity.record_skipped(self.relative(key), why)
