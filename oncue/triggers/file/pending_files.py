"""PendingFiles: files that were noticed and are not decided yet.

watch ──notices──► apply ──► noticed ──► (watcher: batches)
scan  ──────────► add_found ──► ▲
                                └── requeue_due: files that are due, or were never closed
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from itertools import islice

from oncue.clocks.process import now_us
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.evaluator import FileEvaluator, PendingFile
from oncue.triggers.file.folder_scan import NOT_UTF8, is_utf8
from oncue.triggers.file.open_files import OpenFiles
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watch.base import (
    ATTRIBUTES,
    BACKFILL,
    CHANGED,
    CLOSED,
    CREATED,
    FOLDER_ADDED,
    FOLDER_MOVED,
    FOUND,
    OPENED,
    OVERFLOW,
    RENAMED,
    ROOT_GONE,
    SOURCE_OPEN,
    Notice,
)

BATCH = 1_000  # files in one batch
MAX_NOTICED = 200_000  # pending files; a full scan finds those beyond
SCAN_ROOM = 4 * BATCH  # scans pause while so many files are pending
MAX_REPORTED = 10_000
OPEN_S = 0.02  # an open reported so soon after a creation is the creator's
LINK_S = 0.1  # a created file that was not closed for so long may be a link


class FolderGone(OSError):
    """The watched folder was moved, removed or unmounted."""


class PendingFiles:
    """Collects notices and found files. Used in the watcher's thread only."""

    def __init__(self, spec: FileSpec, evaluator: FileEvaluator, activity: ActivityLog) -> None:
        self.noticed: dict[FileKey, PendingFile] = {}
        self.lost_notices = False  # a full scan is needed
        self.backfilled: set[FileKey] = set()  # found by the next scan
        self._created: dict[FileKey, float] = {}  # -> time of the check, in monotonic seconds
        self._spec, self._evaluator, self._activity = spec, evaluator, activity
        self._opens = OpenFiles()
        self._reported: set[str] = set()

    def apply(self, notices: Iterable[Notice]) -> list[tuple[str, int]]:
        """Add the files of these notices; return new and renamed folders.

        With each folder: the bits of the files that a scan finds in it. Raises FolderGone.
        """
        matches, noticed = self._spec.matches, self.noticed
        added: list[tuple[str, int]] = []
        created: set[FileKey] = set()
        for kind, folder, name, at_us, source in notices:
            if not (is_utf8(name) and is_utf8(folder)):
                self.report_once(f"{folder}/{name}" if folder else name, NOT_UTF8)
                continue
            if kind & (CLOSED | RENAMED | CHANGED):
                key = (folder, name)
                if self._created:
                    self._created.pop(key, None)
                if self._evaluator.hears_opens:
                    kind |= self._opens.apply(kind, key, source)
                if matches(folder, name):
                    old = noticed.get(key)
                    noticed[key] = (
                        PendingFile(kind | old.bits, at_us, None, min(old.tries, 1))
                        if old
                        else PendingFile(kind, at_us, None)
                    )
            elif kind == CREATED:
                self._created[folder, name] = time.monotonic() + LINK_S
                created.add((folder, name))
            elif kind == OPENED:
                self._opened((folder, name), created)
            elif kind == ATTRIBUTES:
                key = (folder, name)
                if matches(folder, name) and key not in noticed and key not in self._evaluator.stability:
                    noticed[key] = PendingFile(ATTRIBUTES, at_us, None)
            elif kind in (FOLDER_ADDED, FOLDER_MOVED):
                added.append((folder, FOUND if kind == FOLDER_ADDED else FOUND | FOLDER_MOVED))
            elif kind == OVERFLOW:
                self.lost_notices = True
                self._opens.clear()
                self._activity.record_waiting(".", "the kernel lost notices: the whole folder is scanned again")
            elif kind == ROOT_GONE:
                raise FolderGone(2, "the folder was moved, removed or unmounted", os.fspath(self._spec.root))
        self._limit()
        return added

    def _opened(self, key: FileKey, created: set[FileKey]) -> None:
        """Note that the open which created the file was reported: its close will be too.

        A later open, by a reader, says nothing. `created`: files whose creation was just reported.
        """
        due = self._created.get(key)
        if due is not None and (key in created or time.monotonic() < due - LINK_S + OPEN_S):
            self._opens.add(key)

    def _limit(self) -> None:
        """Drop the oldest files beyond the limits; a full scan finds them again."""
        noticed = self.noticed
        if len(noticed) > MAX_NOTICED:
            self.lost_notices = True
            for key in list(islice(noticed, len(noticed) - MAX_NOTICED)):
                del noticed[key]
        if len(self._created) > MAX_NOTICED:
            self._created.clear()

    def add_found(self, key: FileKey, bits: int = FOUND) -> None:
        """Add a file that a scan found."""
        if key in self._opens:
            bits |= SOURCE_OPEN
        if key in self.backfilled:
            self.backfilled.discard(key)
            bits |= BACKFILL
        self.noticed[key] = PendingFile(bits, now_us(), None)

    def requeue_due(self, now: float) -> None:
        """Move waiting files that are due to `noticed`.

        Also created files that nobody closed for LINK_S.
        """
        if len(self._evaluator.stability) and len(self.noticed) < SCAN_ROOM:
            for key, waiting in self._evaluator.stability.pop_due(now, BATCH):
                news = self.noticed.get(key)  # noticed at this moment: it is evaluated anew
                seen = waiting.seen if waiting.still and news is None else None
                bits = waiting.bits | news.bits if news is not None else waiting.bits
                self.noticed[key] = PendingFile(bits, waiting.at_us, seen, waiting.tries)
        while self._created:  # ordered by time
            key, due = next(iter(self._created.items()))
            if due > now:
                break
            del self._created[key]
            if self._spec.matches(*key):
                self._created_unclosed(key)

    def _created_unclosed(self, key: FileKey) -> None:
        """Add a created file that was not closed.

        It is a link, or it is being written. The evaluator finds out which.
        """
        try:
            st = os.lstat(self._evaluator.path(key))
        except OSError:
            return
        regular = stat.S_ISREG(st.st_mode)
        if stat.S_ISLNK(st.st_mode) or (regular and st.st_nlink > 1):
            self.noticed.setdefault(key, PendingFile(RENAMED, now_us(), None))
        elif regular:
            bits = CREATED | SOURCE_OPEN if key in self._opens else CREATED
            self.noticed.setdefault(key, PendingFile(bits, now_us(), None))

    def due_s(self, now: float) -> float | None:
        """Return the seconds until `requeue_due` has work; None if no file waits."""
        waits = [LINK_S] if self._created else []
        due = self._evaluator.stability.next_due()
        if due is not None and len(self.noticed) < SCAN_ROOM:
            waits.append(due - now)
        return min(waits, default=None)

    def bits(self, key: FileKey) -> int:
        """Return the kinds of the file's notices; 0: it is not pending and does not wait."""
        noticed, waiting = self.noticed.get(key), self._evaluator.stability.get(key)
        return (noticed.bits if noticed else 0) | (waiting.bits if waiting else 0)

    @property
    def has_room(self) -> bool:
        """True if scans may add files."""
        return len(self.noticed) < SCAN_ROOM and len(self._evaluator.stability) < MAX_NOTICED

    def report_once(self, path: str, why: str) -> None:
        """Record as skipped, at its first call only: each scan meets the path again."""
        if path not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(path)
            self._activity.record_skipped(path, why)
