"""FileEvaluator: decides whether a noticed file fires, waits or is skipped.

Each decision is recorded in the ActivityLog.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from oncue.clocks.process import now_us
from oncue.disk.permissions import ENTER_FOLDER, explain
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.content import ATTRIBUTES_ONLY, NEW, birth_us, compare, looks_same
from oncue.triggers.file.ledger import EXISTING, FIRED, SKIPPED_FILE, FileRow, KnownFile
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.readiness import BUSY, SKIPPED, STABILIZING, cause, check_readiness
from oncue.triggers.file.stability import (
    FileKey,
    Fingerprint,
    StabilityQueue,
    WaitingFile,
    fingerprint,
    open_for_writing,
)
from oncue.triggers.file.watch.base import ATTRIBUTES, CLOSED, CREATED, FOUND, RENAMED, SOURCE_OPEN

#: Pauses between the checks of a file that is open for writing. The first is short: the kernel
#: reports a close a moment before it lets go of the file.
BUSY_S = (0.02, 0.1, 0.5, 1.0)
FREE_S = 0.05  # a new name that nobody writes for so long, and nobody closed, is a link
OPEN_US = 600_000_000  # a file whose writers are unknown is closed so long after its last change
ATTRIBUTES_S = 0.5  # `cp -p` sets the times first, then closes
_WHEN = {FIRED: "it fired", EXISTING: "the trigger was deployed", SKIPPED_FILE: "it was passed over"}
_FREE = 1 << 20  # bit: nobody had the file open for writing at the last check


class PendingFile(NamedTuple):
    """A file that was noticed and is not decided yet."""

    bits: int  # kinds of its notices (watch/base.py)
    at_us: int
    seen: Fingerprint | None  # set: it fires if it still has this fingerprint
    tries: int = 0  # checks so far that found it open for writing


class ReadyFile(NamedTuple):
    """A file that fires."""

    st: os.stat_result
    seen: Fingerprint
    cause: str
    #: It has fired before with the same fingerprint, and its content is new: a reused inode number.
    again: bool


class FileEvaluator:
    """Decides about files. Used in the watcher's thread only."""

    def __init__(self, spec: FileSpec, activity: ActivityLog) -> None:
        self.stability = StabilityQueue()
        self.in_flight: dict[FileKey, KnownFile] = {}  # published, not yet durable
        self.network = ""  # type of the network filesystem that holds the folder; "": local
        self.hears_closes = False  # the watch reports the closes of all writers
        self.hears_opens = False  # ... and the opens
        self._spec, self._activity, self._root = spec, activity, os.fspath(spec.root)
        self._handled: list[FileRow] = []

    def drain_handled(self) -> list[FileRow]:
        """Return the files handled without an event since the last call, for the ledger.

        Scans ignore recorded files that have not changed.
        """
        handled, self._handled = self._handled, []
        return handled

    def record_handled(self, row: FileRow) -> None:
        """Note a file that was handled without an event."""
        self._handled.append(row)

    def born_before(self, key: FileKey, at_us: int) -> bool:
        """Return True unless the file's inode was created later."""
        born = self._born(key)()
        return born is None or born <= at_us

    def writers(self, key: FileKey) -> bool | None:
        """Return True if the file is open for writing; None: unknown."""
        return None if self.network else open_for_writing(self.path(key), self._spec.links)

    def is_in_flight(self, key: FileKey, seen: Fingerprint, ctime_ns: int) -> bool:
        """Return True if the event of this state is published, and not durable yet."""
        sent = self.in_flight.get(key)
        return sent is not None and looks_same(sent, seen, ctime_ns)

    def path(self, key: FileKey) -> str:
        return f"{self._root}/{key[0]}/{key[1]}" if key[0] else f"{self._root}/{key[1]}"

    def relative(self, key: FileKey) -> str:
        return f"{key[0]}/{key[1]}" if key[0] else key[1]

    def decide(self, key: FileKey, pending: PendingFile, known: KnownFile | None) -> ReadyFile | None:
        """Return the file if it fires."""
        waited = self.stability.pop(key)
        bits = pending.bits | waited.bits if waited else pending.bits
        if bits & CLOSED and bits & SOURCE_OPEN:  # the close that was awaited
            bits &= ~(FOUND | SOURCE_OPEN)
        known = self.in_flight.get(key, known)
        if bits == ATTRIBUTES and known is None:
            return None
        st = self._stat(key)
        if st is None:
            return None
        seen = fingerprint(st)
        if bits == ATTRIBUTES and known is not None:
            self._record_attributes(key, pending, st, seen, known)
            return None
        repeat = self._why_no_repeat(key, bits, st, seen, known)
        if repeat is not None:
            if repeat:
                self._skip(key, repeat)
            return None
        if bits & CREATED and (self._spec.required or self._spec.any):
            named = self._how_named(key, bits, st)
            if named is None:
                self._wait(key, pending._replace(bits=bits), seen, FREE_S, bits | _FREE, still=False)
                return None
            bits = named
        settled = pending.seen == seen
        changed = pending.seen is not None and pending.seen.ino == seen.ino and not settled
        readiness, seconds, why = check_readiness(
            self._spec, bits, lambda: self.writers(key), self.hears_closes, settled, changed or bool(bits & SOURCE_OPEN)
        )
        if readiness == SKIPPED:
            self.record_handled(FileRow(*key, SKIPPED_FILE, *seen, now_us(), st.st_ctime_ns))
            self._skip(key, why)
            return None
        if readiness in (STABILIZING, BUSY):
            still = readiness == STABILIZING
            self._wait(key, pending, seen, seconds if still else None, bits, still)
            if still or not (pending.tries or (waited and waited.tries)):
                self._activity.record_waiting(self.relative(key), why)
            return None
        again = known is not None and known.state == FIRED and known.is_same(seen)
        return ReadyFile(st, seen, cause(self._spec, bits, settled), again)

    def _wait(
        self, key: FileKey, pending: PendingFile, seen: Fingerprint, seconds: float | None, bits: int, still: bool
    ) -> None:
        """Evaluate the file again in `seconds`; None: in the next interval of BUSY_S."""
        pause = BUSY_S[min(pending.tries, len(BUSY_S) - 1)] if seconds is None else seconds
        tries = pending.tries + 1 if seconds is None else pending.tries
        self.stability.push(key, WaitingFile(bits, pending.at_us, seen, time.monotonic() + pause, still, tries))

    def _how_named(self, key: FileKey, bits: int, st: os.stat_result) -> int | None:
        """Return the bits of a file whose name is new; None: look again soon.

        It was linked to its name if nobody writes it and nobody closed it.
        """
        rest = bits & ~(CREATED | _FREE)
        if rest & (CLOSED | RENAMED):
            return rest
        if st.st_nlink > 1:
            return rest | RENAMED
        writing = self.writers(key)
        if writing:
            return bits & ~_FREE
        if writing is None:
            return rest | (RENAMED if self.hears_opens and not bits & SOURCE_OPEN else FOUND)
        return rest | RENAMED if bits & _FREE else None

    def _record_attributes(
        self, key: FileKey, pending: PendingFile, st: os.stat_result, seen: Fingerprint, known: KnownFile
    ) -> None:
        """Note the new times of a handled file whose content is the same."""
        if known.seen[:2] != seen[:2] or known.state == SKIPPED_FILE:
            return  # it is being written: its close, or a scan, follows
        writing = self.writers(key)
        if not pending.tries or key in self.in_flight or writing:
            self._wait(key, pending._replace(tries=1), seen, ATTRIBUTES_S, ATTRIBUTES, still=False)
        elif writing is None and self.hears_closes:
            # The former ctime stays: should somebody have it open, his close still fires it.
            self.record_handled(FileRow(*key, known.state, *seen, now_us(), known.ctime_ns))
        elif writing is False or compare(known, seen, st.st_ctime_ns, ATTRIBUTES, self._born(key)) == ATTRIBUTES_ONLY:
            self.record_handled(FileRow(*key, known.state, *seen, known.at_us, st.st_ctime_ns))

    def _is_closed(self, key: FileKey, st: os.stat_result) -> bool:
        """Return True if no close is to come that tells of the file's last change."""
        if self.writers(key) is False or not self.hears_closes:
            return True
        return now_us() - st.st_ctime_ns // 1_000 > OPEN_US

    def _born(self, key: FileKey) -> Callable[[], int | None]:
        return lambda: None if self.network else birth_us(self.path(key))

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
            gone = "it was gone before it was ready" if isinstance(e, FileNotFoundError) else explain(e, ENTER_FOLDER)
            self._skip(key, gone)
            return None
        if not stat.S_ISREG(st.st_mode):
            if not stat.S_ISDIR(st.st_mode):
                self._skip(key, "it is not a regular file")
            return None
        return st

    def _why_no_repeat(
        self, key: FileKey, bits: int, st: os.stat_result, seen: Fingerprint, known: KnownFile | None
    ) -> str | None:
        """Return why this state does not fire again; None: it may fire.

        "": a reason that is not worth recording.
        """
        if known is None or (known.state == SKIPPED_FILE and not bits & FOUND):
            return None
        if known.state == FIRED and self._spec.never:
            return "" if key in self.in_flight else "it has fired before (refire: never)"
        if known.state == EXISTING and (self._spec.existing or bits & RENAMED):
            return None
        change = compare(known, seen, st.st_ctime_ns, bits, self._born(key))
        if change == NEW:
            return None
        when = _WHEN[known.state]
        if change == ATTRIBUTES_ONLY:
            if key not in self.in_flight and self._is_closed(key, st):
                self.record_handled(FileRow(*key, known.state, *seen, known.at_us, st.st_ctime_ns))
            return f"only its times have changed since {when}" if known.seen != seen else ""
        return "" if bits & FOUND or key in self.in_flight else f"it is unchanged since {when}"

    def _skip(self, key: FileKey, why: str) -> None:
        self._activity.record_skipped(self.relative(key), why)
