"""What was noticed below the watched folder and is not decided yet. Used in the watcher's thread only.

watch ──notices──► take ──► noticed ──► (watcher: batches)
walk  ──────────► found ──►    ▲
                               └── requeue_due: settling files that are due, created ones that nobody closed
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from itertools import islice

from oncue import ids
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.evaluator import FileEvaluator, PendingFile
from oncue.triggers.file.folder_scan import NOT_UTF8, is_utf8
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.stability import FileKey
from oncue.triggers.file.watch.base import (
    CHANGED,
    CLOSED,
    CREATED,
    FOLDER_ADDED,
    FOUND,
    OVERFLOW,
    RENAMED,
    ROOT_GONE,
    Notice,
)

BATCH = 1_000  # files in one batch
MAX_NOTICED = 200_000  # files remembered as noticed; beyond, a walk finds them
WALK_ROOM = 4 * BATCH  # a walk pauses while so many wait
MAX_REPORTED = 10_000
LINK_S = 0.2  # how long after its creation a file that nobody closed is looked at: a link?


class FolderGone(OSError):
    """The watched folder went away."""


class PendingFiles:
    def __init__(self, spec: FileSpec, evaluator: FileEvaluator, activity: ActivityLog) -> None:
        self.noticed: dict[FileKey, PendingFile] = {}
        self.lost_notices = False  # everything has to be looked at
        self._created: dict[FileKey, float] = {}  # and when they are looked at, in monotonic seconds
        self._spec, self._evaluator, self._activity = spec, evaluator, activity
        self._reported: set[str] = set()

    def apply(self, notices: Iterable[Notice]) -> list[str]:
        """Gives the folders that are new, or have a new name. Raises Gone."""
        matches, noticed = self._spec.matches, self.noticed
        entered: list[str] = []
        for kind, folder, name, at_us in notices:
            if not (is_utf8(name) and is_utf8(folder)):
                self.report_once(f"{folder}/{name}" if folder else name, NOT_UTF8)
                continue
            if kind & (CLOSED | RENAMED | CHANGED):
                key = (folder, name)
                if self._created:
                    self._created.pop(key, None)
                if matches(folder, name):
                    old = noticed.get(key)
                    noticed[key] = PendingFile(kind | old.bits if old else kind, at_us, None)
            elif kind == CREATED:
                self._created[folder, name] = time.monotonic() + LINK_S
            elif kind == FOLDER_ADDED:
                entered.append(folder)
            elif kind == OVERFLOW:
                self.lost_notices = True
                self._activity.record_waiting(".", "the kernel lost notices: everything is looked at again")
            elif kind == ROOT_GONE:
                raise FolderGone(2, "the folder was moved, removed or unmounted", os.fspath(self._spec.root))
        if len(noticed) > MAX_NOTICED:
            self.lost_notices = True
            for key in list(islice(noticed, len(noticed) - MAX_NOTICED)):
                del noticed[key]
        if len(self._created) > MAX_NOTICED:
            self._created.clear()
        return entered

    def add_found(self, key: FileKey) -> None:
        """A walk met it."""
        self.noticed[key] = PendingFile(FOUND, ids.now_us(), None)

    def requeue_due(self, now: float) -> None:
        """Files that have kept still, or may have; and those that were created and not closed: links?"""
        if len(self._evaluator.stability) and len(self.noticed) < WALK_ROOM:
            for key, waiting in self._evaluator.stability.pop_due(now, BATCH):
                self.noticed[key] = PendingFile(
                    waiting.bits, waiting.at_us, waiting.seen if waiting.still else None, not waiting.still
                )
        while self._created:  # in the order of their time
            key, due = next(iter(self._created.items()))
            if due > now:
                break
            del self._created[key]
            if self._spec.matches(*key):
                self._created_unclosed(key)

    def _created_unclosed(self, key: FileKey) -> None:
        try:
            st = os.lstat(self._evaluator.path(key))
        except OSError:
            return
        at_us = ids.now_us()
        if stat.S_ISLNK(st.st_mode) or (stat.S_ISREG(st.st_mode) and st.st_nlink > 1):
            self.noticed.setdefault(key, PendingFile(RENAMED, at_us, None))
        elif stat.S_ISREG(st.st_mode) and not (self._spec.required or self._spec.any):
            self.noticed.setdefault(key, PendingFile(FOUND, at_us, None))

    def due_s(self, now: float) -> float | None:
        """How long until `requeue_due` has something to do; None: nothing waits."""
        waits = [LINK_S] if self._created else []
        due = self._evaluator.stability.next_due()
        if due is not None and len(self.noticed) < WALK_ROOM:
            waits.append(due - now)
        return min(waits, default=None)

    def contains(self, key: FileKey) -> bool:
        """Whether it is being dealt with."""
        return key in self.noticed or key in self._evaluator.stability

    @property
    def has_room(self) -> bool:
        """Whether walks may find more."""
        return len(self.noticed) < WALK_ROOM and len(self._evaluator.stability) < MAX_NOTICED

    def report_once(self, path: str, why: str) -> None:
        """For what each walk meets again."""
        if path not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(path)
            self._activity.record_skipped(path, why)
