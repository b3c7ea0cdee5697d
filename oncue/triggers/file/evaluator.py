"""Does this file fire, not yet, or not? Every answer leaves a line in the diary."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from oncue import ids
from oncue.triggers.activity import ActivityLog
from oncue.triggers.file.ledger import FIRED, PASSED, Found, Row
from oncue.triggers.file.options import Spec
from oncue.triggers.file.readiness import BUSY, BUSY_WHY, PASSED_OVER, STILL, cause, judge
from oncue.triggers.file.stability import Key, Print, Settling, Waiting, fingerprint, open_for_writing
from oncue.triggers.file.watch.base import FOUND, RENAMED

BUSY_S = 1.0  # how often a file that somebody writes is looked at


class Noticed(NamedTuple):
    """What is to be decided about."""

    bits: int  # of base.py
    at_us: int
    seen: Print | None  # set: it was to be unchanged from this until now
    busy: bool = False  # it was seen open for writing before


class Sieve:
    """Used in the lookout's thread only."""

    def __init__(self, spec: Spec, diary: ActivityLog) -> None:
        self.settling = Settling()
        self.on_way: dict[Key, Print] = {}  # published, not yet known to be durable
        self.network = ""  # the network filesystem that holds the folder
        self._spec, self._diary, self._root = spec, diary, os.fspath(spec.root)
        self._passed: list[Row] = []

    def take_passed(self) -> list[Row]:
        """Those decided against since the last call, for the ledger: a walk shall not ask again."""
        passed, self._passed = self._passed, []
        return passed

    def writers(self, key: Key) -> bool | None:
        """Whether somebody has it open for writing; None: unknown."""
        return None if self.network else open_for_writing(self.path(key))

    def path(self, key: Key) -> str:
        return f"{self._root}/{key[0]}/{key[1]}" if key[0] else f"{self._root}/{key[1]}"

    def relative(self, key: Key) -> str:
        return f"{key[0]}/{key[1]}" if key[0] else key[1]

    def decide(self, key: Key, noticed: Noticed, known: Found | None) -> tuple[os.stat_result, Print, str] | None:
        """(stat, state, cause) of a file that fires; None of one that does not, or not yet."""
        waited = self.settling.pop(key)
        bits = noticed.bits | waited.bits if waited else noticed.bits
        st = self._look(key)
        if st is None:
            return None
        seen = fingerprint(st)
        why_not = self._why_not(key, bits, seen, known)
        if why_not is not None:
            if why_not:
                self._diary.skips(self.relative(key), why_not)
            return None
        if noticed.seen == seen:
            return st, seen, cause(bits, waited=True)
        verdict, seconds, why = judge(self._spec, bits, lambda: self.writers(key))
        if noticed.seen is not None and verdict != BUSY:  # it was to keep still and has not
            verdict, seconds, why = STILL, max(seconds, self._spec.stable_s), "it has changed meanwhile"
        if verdict == PASSED_OVER:
            self._passed.append(Row(*key, PASSED, *seen, ids.now_us()))
            self._skip(key, why)
            return None
        if verdict in (STILL, BUSY):
            still = verdict == STILL
            due = time.monotonic() + (seconds if still else BUSY_S)
            self.settling.put(key, Waiting(bits, noticed.at_us, seen, due, still))
            if not (noticed.busy and why == BUSY_WHY):
                self._diary.waits(self.relative(key), why)
            return None
        return st, seen, cause(bits, waited=False)

    def _look(self, key: Key) -> os.stat_result | None:
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

    def _why_not(self, key: Key, bits: int, seen: Print, known: Found | None) -> str | None:
        """Why a file of this state does not fire again; "" if that is not worth a word; None if it may."""
        on_way = self.on_way.get(key)
        if on_way is not None and (on_way == seen or self._spec.never):
            return ""
        if known is None or known.state == PASSED:
            return None
        if known.state == FIRED:
            if self._spec.never:
                return "it has fired before (refire: never)"
            if not known.same(seen):
                return None
            return "" if bits & FOUND else "it is unchanged since it fired"
        if not known.same(seen) or bits & RENAMED or self._spec.existing:
            return None
        return "" if bits & FOUND else "it is unchanged since the trigger was deployed"

    def _skip(self, key: Key, why: str) -> None:
        self._diary.skips(self.relative(key), why)
