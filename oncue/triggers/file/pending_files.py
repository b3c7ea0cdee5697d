"""What was noticed below the watched folder and is not decided yet. Used in the lookout's thread only.

watch ──notices──► take ──► noticed ──► (lookout: batches)
walk  ──────────► found ──►    ▲
                               └── look_again: settling files that are due, created ones that nobody closed
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from itertools import islice

from oncue import ids
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.evaluator import Noticed, Sieve
from oncue.triggers.file.folder_scan import NOT_UTF8, is_utf8
from oncue.triggers.file.options import Spec
from oncue.triggers.file.stability import Key
from oncue.triggers.file.watch.base import CLOSED, CREATED, ENTERED, FOUND, HINT, LOST, OVERFLOW, RENAMED, Notice

BATCH = 1_000  # files in one batch
MOST_NOTICED = 200_000  # files remembered as noticed; beyond, a walk finds them
WALK_ROOM = 4 * BATCH  # a walk pauses while so many wait
MOST_TOLD = 10_000
LINK_S = 0.2  # how long after its creation a file that nobody closed is looked at: a link?


class Gone(OSError):
    """The watched folder went away."""


class Arrivals:
    def __init__(self, spec: Spec, sieve: Sieve, diary: ActivityLog) -> None:
        self.noticed: dict[Key, Noticed] = {}
        self.lost_notices = False  # everything has to be looked at
        self._created: dict[Key, float] = {}  # and when they are looked at, in monotonic seconds
        self._spec, self._sieve, self._diary = spec, sieve, diary
        self._told: set[str] = set()

    def take(self, notices: Iterable[Notice]) -> list[str]:
        """Gives the folders that are new, or have a new name. Raises Gone."""
        matches, noticed = self._spec.matches, self.noticed
        entered: list[str] = []
        for kind, folder, name, at_us in notices:
            if not (is_utf8(name) and is_utf8(folder)):
                self.tell_once(f"{folder}/{name}" if folder else name, NOT_UTF8)
                continue
            if kind & (CLOSED | RENAMED | HINT):
                key = (folder, name)
                if self._created:
                    self._created.pop(key, None)
                if matches(folder, name):
                    old = noticed.get(key)
                    noticed[key] = Noticed(kind | old.bits if old else kind, at_us, None)
            elif kind == CREATED:
                self._created[folder, name] = time.monotonic() + LINK_S
            elif kind == ENTERED:
                entered.append(folder)
            elif kind == OVERFLOW:
                self.lost_notices = True
                self._diary.waits(".", "the kernel lost notices: everything is looked at again")
            elif kind == LOST:
                raise Gone(2, "the folder was moved, removed or unmounted", os.fspath(self._spec.root))
        if len(noticed) > MOST_NOTICED:
            self.lost_notices = True
            for key in list(islice(noticed, len(noticed) - MOST_NOTICED)):
                del noticed[key]
        if len(self._created) > MOST_NOTICED:
            self._created.clear()
        return entered

    def found(self, key: Key) -> None:
        """A walk met it."""
        self.noticed[key] = Noticed(FOUND, ids.now_us(), None)

    def look_again(self, now: float) -> None:
        """Files that have kept still, or may have; and those that were created and not closed: links?"""
        if len(self._sieve.settling) and len(self.noticed) < WALK_ROOM:
            for key, waiting in self._sieve.settling.take_due(now, BATCH):
                self.noticed[key] = Noticed(
                    waiting.bits, waiting.at_us, waiting.seen if waiting.still else None, not waiting.still
                )
        while self._created:  # in the order of their time
            key, due = next(iter(self._created.items()))
            if due > now:
                break
            del self._created[key]
            if self._spec.matches(*key):
                self._created_unclosed(key)

    def _created_unclosed(self, key: Key) -> None:
        try:
            st = os.lstat(self._sieve.path(key))
        except OSError:
            return
        at_us = ids.now_us()
        if stat.S_ISLNK(st.st_mode) or (stat.S_ISREG(st.st_mode) and st.st_nlink > 1):
            self.noticed.setdefault(key, Noticed(RENAMED, at_us, None))
        elif stat.S_ISREG(st.st_mode) and not (self._spec.required or self._spec.any):
            self.noticed.setdefault(key, Noticed(FOUND, at_us, None))

    def due_s(self, now: float) -> float | None:
        """How long until `look_again` has something to do; None: nothing waits."""
        waits = [LINK_S] if self._created else []
        due = self._sieve.settling.next_due()
        if due is not None and len(self.noticed) < WALK_ROOM:
            waits.append(due - now)
        return min(waits, default=None)

    def known(self, key: Key) -> bool:
        """Whether it is being dealt with."""
        return key in self.noticed or key in self._sieve.settling

    @property
    def room(self) -> bool:
        """Whether walks may find more."""
        return len(self.noticed) < WALK_ROOM and len(self._sieve.settling) < MOST_NOTICED

    def tell_once(self, path: str, why: str) -> None:
        """For what each walk meets again."""
        if path not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(path)
            self._diary.skips(path, why)
