"""Baseline: separates files that existed before the trigger from new ones.

Existing files are recorded in the ledger and do not fire, unless `existing: true`.

    deploy recorded ──► initial scan: files exist ──► durable in the ledger ──► deploy answered
                                                                                └─► files are new

The initial scan compares no times: files keep theirs when their tree is moved in, the kernel's file
times lag by some ms, and a file server has its own clock. Times decide in two cases only: the
deploy had to be answered before the scan had ended (a huge tree, an unreadable folder), or the
process died in between. Then a file not found yet is classified by its ctime and the time of the
deploy; in doubt it fires.

Files that come while oncue is down are found by later scans and fire. When the globs of a deployed
trigger change, files that only the new globs select count as existing too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from oncue.clocks.process import now_us
from oncue.triggers.file.ledger import EXISTING, Ledger
from oncue.triggers.file.options import FileSpec
from oncue.triggers.file.selection import read_selection

TICK_S = 0.02  # more than the resolution of file times
SKEW_S = 5.0  # greatest difference to a file server's clock
_RECENT_US = 86_400 * 1_000_000  # a file changed earlier than this is not being written any more
#: A deploy so long ago had its initial scan: its ledger was lost since.
_STALE_US = 86_400 * 1_000_000


class OpenScan(msgspec.Struct, frozen=True, array_like=True):
    """An initial scan that began and has not ended. Stored in the ledger."""

    since_us: int
    selects: str  # FileSpec.selects: the files that it covers

    @property
    def covers(self) -> Callable[[str, str], bool]:
        return read_selection(self.selects).compile()[0]


_decode = msgspec.json.Decoder(list[OpenScan]).decode


class Baseline:
    """State of the initial scan. Used in the watcher's thread only."""

    def __init__(
        self, spec: FileSpec, ledger: Ledger, deployed_us: int = 0, by_time: Callable[[], bool] = lambda: False
    ) -> None:
        """`deployed_us`: when the deployment was recorded, in unix µs; 0: now.

        `by_time`: returns True when files found from now on are classified by their times. It is
        called for each file, after its stat.
        """
        self._spec, self._ledger, self._by_time = spec, ledger, by_time
        self.resumed = False  # an earlier process, or an earlier deploy, began the scan
        self.network = False  # file times come from another clock
        self._scans: list[tuple[int, Callable[[str, str], bool]]] = []  # not ended, oldest first
        self._covered_before: Callable[[str, str], bool] | None = None
        self._folder_found = False  # since the scan began
        done, text = ledger.meta("selects"), ledger.meta("looking")
        scans = _decode(text) if text else []
        if done == spec.selects:
            if scans:
                ledger.set_meta(looking="")
            return
        if done:
            self._covered_before = OpenScan(0, done).covers
        if scans and scans[-1].selects == spec.selects:
            self.resumed, self._folder_found = True, ledger.count(EXISTING) > 0
        else:
            scans.append(OpenScan(_since(deployed_us), spec.selects))
            ledger.set_meta(looking=msgspec.json.encode(scans).decode())
        self._scans = [(scan.since_us, scan.covers) for scan in scans]

    @property
    def open(self) -> bool:
        """True until the initial scan has ended.

        With `existing: true` nothing depends on it.
        """
        return bool(self._scans) and not self._spec.existing

    def existed(self, folder: str, name: str, st: os.stat_result, writers: Callable[[], bool | None]) -> bool:
        """Return True if this file existed before the trigger and is complete.

        For a file that a scan found and the ledger does not have.
        """
        if not self.open or (self._covered_before is not None and self._covered_before(folder, name)):
            return False
        i, since_us = next((i, since) for i, (since, covers) in enumerate(self._scans) if covers(folder, name))
        changed_us = st.st_ctime_ns // 1_000
        # The last scan belongs to the deploy in progress; the other deploys are answered.
        if (self._by_time() or i + 1 < len(self._scans)) and changed_us >= since_us - self._tolerance_us:
            return False
        return changed_us < since_us - _RECENT_US or writers() is not True

    @property
    def _tolerance_us(self) -> int:
        return round((SKEW_S if self.network else TICK_S) * 1e6)

    def folder_found(self) -> None:
        """Note that the watched folder exists."""
        self._folder_found = True

    def folder_missing(self) -> None:
        """Note that the watched folder is missing.

        If it was missing at each check since the deploy, all files in it will be new: the scan
        ends.
        """
        if self._covered_before is None and not self._by_time() and not self._folder_found:
            self._end()

    def scan_finished(self) -> None:
        """Note that a full scan has ended."""
        if self._scans:
            # A file changed after the answer must get another time than the recorded one.
            time.sleep(TICK_S)
            self._end()

    def _end(self) -> None:
        if self._scans:
            self._ledger.commit_meta(selects=self._spec.selects, looking="")
            self._scans, self._covered_before = [], None


def _since(deployed_us: int) -> int:
    now = now_us()
    recent = deployed_us > 0 and now - deployed_us < _STALE_US
    return min(deployed_us, now) if recent else now
