"""Scanner: runs the folder scans of a session, one at a time, in small steps.

Full scans (the initial one, then periodic ones) and scans of new folders. A file that a scan finds
existed before the trigger (baseline.py), is already handled, or is new.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from oncue.clocks.process import now_us
from oncue.triggers.file.baseline import Baseline
from oncue.triggers.file.content import looks_same
from oncue.triggers.file.evaluator import FileEvaluator
from oncue.triggers.file.folder_scan import FolderScan
from oncue.triggers.file.ledger import EXISTING, FIRED, FileRow, KnownFile, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.pending_files import PendingFiles
from oncue.triggers.file.stability import fingerprint
from oncue.triggers.file.watch.base import ATTRIBUTES, FOUND, FolderWatch
from oncue.triggers.file.watch.scan_only import ScanOnlyWatch

SCAN_STEP_S = 0.02  # longest step
RESCAN_S, RESCAN_NETWORK_S, RESCAN_UNWATCHED_S = 300.0, 10.0, 30.0
RESCAN_ONLY_S = 5.0  # without any watch
RESCAN_SHARE = 50  # full scans take at most one part in so many of the time


class QueuedScan(NamedTuple):
    """A scan that waits or runs."""

    scan: FolderScan
    steps: Iterator[None]
    began: float  # monotonic seconds; 0.0: it waits
    bits: int  # notices of the files in it


class Scanner:
    """Owns the queue of scans. Used in the watcher's thread only."""

    def __init__(
        self,
        spec: FileSpec,
        watch: FolderWatch,
        ledger: Ledger,
        baseline: Baseline,
        pending_files: PendingFiles,
        evaluator: FileEvaluator,
    ) -> None:
        self.unwatched = 0  # folders that the kernel refused to watch
        self.existing = 0  # existing files found
        self._spec, self._watch, self._ledger = spec, watch, ledger
        self._baseline, self._pending_files, self._evaluator = baseline, pending_files, evaluator
        self._scans: deque[QueuedScan] = deque()
        self._bits = FOUND  # notices of the files that the running scan finds
        self._next = 0.0  # when the next full scan begins
        self._existing_rows: list[FileRow] = []  # found in this step, not in the ledger yet
        self.enter("")

    def enter(self, folder: str, bits: int = FOUND) -> None:
        """Queue a scan of this folder; "": a full scan.

        `bits`: kinds of the notices of the files in it.
        """
        if folder and not self._spec.enter(folder):
            return
        if any(scan.full and began == 0.0 for scan, _, began, _ in self._scans):
            return  # a full scan that has not begun covers it
        scan = FolderScan(folder, self._spec, self._watch, self._ledger, self._on_file, self._pending_files.report_once)
        self._scans.append(QueuedScan(scan, iter(scan), 0.0, bits))

    def due_s(self, now: float) -> float | None:
        """Return the seconds until `step` has work; None while there is no room."""
        if not self._pending_files.has_room:
            return None
        return 0.0 if self._scans or self._pending_files.lost_notices else self._next - now

    def step(self, now: float) -> bool:
        """Run one step of the first scan, if there is room.

        Returns True when a full scan has ended.
        """
        if not self._pending_files.has_room:
            return False
        if not self._scans:
            if now < self._next and not self._pending_files.lost_notices:
                return False
            self._pending_files.lost_notices = False
            self.enter("")
        scan, steps, began, self._bits = self._scans[0]
        if not began:
            began = now
            self._scans[0] = self._scans[0]._replace(began=began)
        ended = False
        while not ended and self._pending_files.has_room and time.monotonic() - now < SCAN_STEP_S:
            ended = next(steps, self) is self
        if self._existing_rows:
            self.existing += self._ledger.store_unknown(self._existing_rows)
            self._existing_rows = []
        if not ended:
            return False
        self._scans.popleft()
        if scan.full:
            self.unwatched = scan.unwatched
            ended_at = time.monotonic()
            self._next = ended_at + max(self.rescan_s, RESCAN_SHARE * (ended_at - began))
        return scan.full

    @property
    def rescan_s(self) -> float:
        """Seconds between full scans."""
        if self._spec.rescan_s:
            return self._spec.rescan_s
        if isinstance(self._watch, ScanOnlyWatch):
            return RESCAN_ONLY_S
        return RESCAN_NETWORK_S if self._evaluator.network else RESCAN_UNWATCHED_S if self.unwatched else RESCAN_S

    def _on_file(self, folder: str, name: str, st: os.stat_result, known: KnownFile | None) -> None:
        """Handle a selected file that a scan found."""
        if not stat.S_ISREG(st.st_mode):
            return
        key, seen = (folder, name), fingerprint(st)
        is_new = known is None or (self._spec.existing and known.state == EXISTING)
        if (
            known is not None
            and not is_new
            and (looks_same(known, seen, st.st_ctime_ns) or (known.state == FIRED and self._spec.never))
        ):
            return
        pending = self._pending_files.bits(key)
        if pending == ATTRIBUTES and known is None:
            pending = 0  # new attributes let no file fire that the ledger does not know
        if (
            is_new
            and not pending  # else it was noticed, so it came after the deploy
            and key not in self._evaluator.in_flight
            and self._baseline.existed(folder, name, st, lambda: self._evaluator.writers(key))
        ):
            self._existing_rows.append(FileRow(*key, EXISTING, *seen, now_us(), st.st_ctime_ns))
            return
        if not pending and not self._evaluator.is_in_flight(key, seen, st.st_ctime_ns):
            self._pending_files.add_found(key, self._bits)
