"""Which files were there before the trigger was: they are remembered and do not fire, unless `existing: true`.

    deploy recorded ──► first look: all that it meets is old ──► durable in the ledger ──► the deploy is answered
                                                                                           └─► what comes now is new

No clock is asked: files keep their times when their tree is moved in, the kernel's file times lag by some ms, and a file
server's clock is another one. Only where the deploy had to be answered before the look had ended (a huge tree, a folder that
cannot be read), or the process died in between, the files that have not been met yet are told apart by their own times (ctime)
and the time of the deploy; in doubt they fire.

Files that come while oncue is down are found by later looks and fire. When the globs of a deployed trigger change, the files
that only the new ones select are "there before" as well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from oncue import ids
from oncue.triggers.file.ledger import EXISTING, Ledger
from oncue.triggers.file.options import FileSpec, selection

TICK_S = 0.02  # more than the steps in which file times go
SKEW_S = 5.0  # how much a file server's clock may differ
_RECENT_US = 86_400 * 1_000_000  # only a file changed this shortly before may still be written
_STALE_US = 86_400 * 1_000_000  # a deploy so long ago had its first look: its memory has been lost since


class OpenScan(msgspec.Struct, frozen=True, array_like=True):
    """A look that has begun and not ended."""

    since_us: int
    selects: str  # which files it is about, see Spec.selects

    @property
    def means(self) -> Callable[[str, str], bool]:
        glob, ignore = msgspec.json.decode(self.selects, type=tuple[str, tuple[str, ...]])
        return selection(glob, ignore)[0]


_decode = msgspec.json.Decoder(list[OpenScan]).decode


class Baseline:
    """Used in the watcher's thread only."""

    def __init__(
        self, spec: FileSpec, ledger: Ledger, deployed_us: int = 0, by_time: Callable[[], bool] = lambda: False
    ) -> None:
        """`deployed_us`: when the deployment was recorded, in unix µs; 0: now. `by_time`: whether what is met from now on
        is judged by its times; it is asked for each file, after that was looked at."""
        self._spec, self._ledger, self._by_time = spec, ledger, by_time
        self.resumed = False  # whether an earlier process, or an earlier deploy, has begun the look
        self.network = False  # whether the files' times are another clock's
        self._spans: list[tuple[int, Callable[[str, str], bool]]] = []  # looks that have not ended, oldest first
        self._seen_before: Callable[[str, str], bool] | None = None
        self._there = False  # whether the folder has been seen since the look began
        done, text = ledger.meta("selects"), ledger.meta("looking")
        spans = _decode(text) if text else []
        if done == spec.selects:
            if spans:
                ledger.set_meta(looking="")
            return
        if done:
            self._seen_before = OpenScan(0, done).means
        if spans and spans[-1].selects == spec.selects:
            self.resumed, self._there = True, ledger.count(EXISTING) > 0
        else:
            spans.append(OpenScan(_since(deployed_us), spec.selects))
            ledger.set_meta(looking=msgspec.json.encode(spans).decode())
        self._spans = [(span.since_us, span.means) for span in spans]

    @property
    def open(self) -> bool:
        """Whether the first look has not ended. With `existing: true` nothing depends on it."""
        return bool(self._spans) and not self._spec.existing

    def existed(self, folder: str, name: str, st: os.stat_result, writers: Callable[[], bool | None]) -> bool:
        """Whether this file, not remembered yet and met by a walk, is from before the trigger and complete."""
        if not self.open or (self._seen_before is not None and self._seen_before(folder, name)):
            return False
        i, since_us = next((i, since) for i, (since, means) in enumerate(self._spans) if means(folder, name))
        changed_us = st.st_ctime_ns // 1_000
        # The last span is that of the deploy that is being answered; those before it have been.
        if (self._by_time() or i + 1 < len(self._spans)) and changed_us >= since_us - self._doubt_us:
            return False
        return changed_us < since_us - _RECENT_US or writers() is not True

    @property
    def _doubt_us(self) -> int:
        return round((SKEW_S if self.network else TICK_S) * 1e6)

    def folder_found(self) -> None:
        """The folder exists."""
        self._there = True

    def folder_missing(self) -> None:
        """The folder does not exist. If it never has since the deploy, whatever will be in it has come later."""
        if self._seen_before is None and not self._by_time() and not self._there:
            self._end()

    def scan_finished(self) -> None:
        """All has been looked at."""
        if self._spans:
            # A file that is changed after the deploy was answered has another time than the one that was remembered.
            time.sleep(TICK_S)
            self._end()

    def _end(self) -> None:
        if self._spans:
            self._ledger.commit_meta(selects=self._spec.selects, looking="")
            self._spans, self._seen_before = [], None


def _since(deployed_us: int) -> int:
    now_us = ids.now_us()
    recent = deployed_us > 0 and now_us - deployed_us < _STALE_US
    return min(deployed_us, now_us) if recent else now_us
