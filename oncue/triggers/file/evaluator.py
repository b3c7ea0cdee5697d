"""Does this file fire, not yet, or not? Every answer leaves a line in the activity."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from oncue import ids
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

BUSY_S = 1.0  # how often a file that somebody writes is looked at


class PendingFile(NamedTuple):
    """What is to be decided about."""

    bits: int  # of base.py
    at_us: int
    seen: Fingerprint | None  # set: it was to be unchanged from this until now
    busy: bool = False  # it was seen open for writing before


class FileEvaluator:
    """Used in the watcher's thread only."""

    def __init__(self, spec: FileSpec, activity: ActivityLog) -> None:
        self.stability = StabilityQueue()
        self.in_flight: dict[FileKey, Fingerprint] = {}  # published, not yet known to be durable
        self.network = ""  # the network filesystem that holds the folder
        self._spec, self._activity, self._root = spec, activity, os.fspath(spec.root)
        self._skipped: list[FileRow] = []

    def drain_skipped(self) -> list[FileRow]:
        """Those decided against since the last call, for the ledger: a walk shall not ask again."""
        passed, self._skipped = self._skipped, []
        return passed

    def writers(self, key: FileKey) -> bool | None:
        """Whether somebody has it open for writing; None: unknown."""
        return None if self.network else open_for_writing(self.path(key))

    def path(self, key: FileKey) -> str:
        return f"{self._root}/{key[0]}/{key[1]}" if key[0] else f"{self._root}/{key[1]}"

    def relative(self, key: FileKey) -> str:
        return f"{key[0]}/{key[1]}" if key[0] else key[1]

    def decide(
        self, key: FileKey, noticed: PendingFile, known: KnownFile | None
    ) -> tuple[os.stat_result, Fingerprint, str] | None:
        """(stat, state, cause) of a file that fires; None of one that does not, or not yet."""
        waited = self.stability.pop(key)
        bits = noticed.bits | waited.bits if waited else noticed.bits
        st = self._stat(key)
        if st is None:
            return None
        seen = fingerprint(st)
        why_not = self._why_not(key, bits, seen, known)
        if why_not is not None:
            if why_not:
                self._activity.record_skipped(self.relative(key), why_not)
            return None
        if noticed.seen == seen:
            return st, seen, cause(bits, waited=True)
        verdict, seconds, why = check_readiness(self._spec, bits, lambda: self.writers(key))
        if noticed.seen is not None and verdict != BUSY:  # it was to keep still and has not
            verdict, seconds, why = STABILIZING, max(seconds, self._spec.stable_s), "it has changed meanwhile"
        if verdict == SKIPPED:
            self._skipped.append(FileRow(*key, SKIPPED_FILE, *seen, ids.now_us()))
            self._skip(key, why)
            return None
        if verdict in (STABILIZING, BUSY):
            still = verdict == STABILIZING
            due = time.monotonic() + (seconds if still else BUSY_S)
            self.stability.put(key, WaitingFile(bits, noticed.at_us, seen, due, still))
            if not (noticed.busy and why == BUSY_WHY):
                self._activity.record_waiting(self.relative(key), why)
            return None
        return st, seen, cause(bits, waited=False)

    def _stat(self, key: FileKey) -> os.stat_result | None:
        path = self.path(key)
        try:
            st = os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                if not self._spec.links:
                    self._skip(key, "it is a symbolic link, which are not followed (symlinks: ignore)")
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

    def _why_not(self, key: FileKey, bits: int, seen: Fingerprint, known: KnownFile | None) -> str | None:
        """Why a file of this state does not fire again; "" if that is not worth a word; None if it may."""
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
