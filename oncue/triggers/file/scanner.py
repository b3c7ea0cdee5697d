"""The walks of one session, one after another in small steps: of everything (the first look, then again and again), and
of folders that are new. What they meet is old (see baseline.py), or dealt with, or has arrived."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Iterator

from oncue import ids
from oncue.triggers.file.baseline import Baseline
from oncue.triggers.file.evaluator import FileEvaluator
from oncue.triggers.file.folder_scan import FolderScan
from oncue.triggers.file.ledger import EXISTING, FIRED, FileRow, KnownFile, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.pending_files import PendingFiles
from oncue.triggers.file.stability import fingerprint
from oncue.triggers.file.watch.base import Watch

WALK_STEP_S = 0.02  # at once
RESCAN_S, RESCAN_NETWORK_S, RESCAN_UNWATCHED_S = 300.0, 10.0, 30.0
RESCAN_SHARE = 50  # a walk takes at most one part in so many of the time


class Scanner:
    """Used in the watcher's thread only."""

    def __init__(
        self,
        spec: FileSpec,
        watch: Watch,
        ledger: Ledger,
        baseline: Baseline,
        pending_files: PendingFiles,
        evaluator: FileEvaluator,
    ) -> None:
        self.unwatched = 0  # folders that the kernel would not watch
        self.existing = 0  # files met that were there before
        self._spec, self._watch, self._ledger = spec, watch, ledger
        self._baseline, self._pending_files, self._evaluator = baseline, pending_files, evaluator
        self._walks: deque[tuple[FolderScan, Iterator[None], float]] = deque()
        self._next = 0.0  # when everything is walked again
        self._was_there: list[FileRow] = []  # met by the step, not yet in the ledger
        self.enter("")

    def enter(self, folder: str) -> None:
        """FolderScan this folder ("": everything), after those that were asked for before."""
        if folder and not self._spec.enter(folder):
            return
        if any(walk.full and began == 0.0 for walk, _, began in self._walks):
            return  # one that has not begun finds it
        walk = FolderScan(folder, self._spec, self._watch, self._ledger, self._met, self._pending_files.report_once)
        self._walks.append((walk, iter(walk), 0.0))

    def due_s(self, now: float) -> float | None:
        """How long until `step` has something to do; None: until there is room."""
        if not self._pending_files.has_room:
            return None
        return 0.0 if self._walks or self._pending_files.lost_notices else self._next - now

    def step(self, now: float) -> bool:
        """A little of the walk that is due, if there is room; True when one of everything has ended."""
        if not self._pending_files.has_room:
            return False
        if not self._walks:
            if now < self._next and not self._pending_files.lost_notices:
                return False
            self._pending_files.lost_notices = False
            self.enter("")
        walk, steps, began = self._walks[0]
        if not began:
            began = now
            self._walks[0] = (walk, steps, began)
        ended = False
        while not ended and self._pending_files.has_room and time.monotonic() - now < WALK_STEP_S:
            ended = next(steps, self) is self
        if self._was_there:
            self.existing += self._ledger.store_unknown(self._was_there)
            self._was_there = []
        if not ended:
            return False
        self._walks.popleft()
        if walk.full:
            self.unwatched = walk.unwatched
            ended_at = time.monotonic()
            self._next = ended_at + max(self.rescan_s, RESCAN_SHARE * (ended_at - began))
        return walk.full

    @property
    def rescan_s(self) -> float:
        """Seconds between walks of everything."""
        if self._spec.rescan_s:
            return self._spec.rescan_s
        return RESCAN_NETWORK_S if self._evaluator.network else RESCAN_UNWATCHED_S if self.unwatched else RESCAN_S

    def _met(self, folder: str, name: str, st: os.stat_result, known: KnownFile | None) -> None:
        """A walk met a file that is meant."""
        if not stat.S_ISREG(st.st_mode):
            return
        key, seen = (folder, name), fingerprint(st)
        if known is not None and not (self._spec.existing and known.state == EXISTING):
            if known.is_same(seen) or (known.state == FIRED and self._spec.never):
                return
        elif (
            not self._pending_files.contains(key)  # what was noticed has come since
            and key not in self._evaluator.in_flight
            and self._baseline.existed(folder, name, st, lambda: self._evaluator.writers(key))
        ):
            self._was_there.append(FileRow(*key, EXISTING, *seen, ids.now_us()))
            return
        if not self._pending_files.contains(key) and self._evaluator.in_flight.get(key) != seen:
            self._pending_files.add_found(key)
