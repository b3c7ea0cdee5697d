"""Which files were there before the trigger was: they are remembered and do not fire, unless `existing: true`.

Only the first walk asks; files that come while oncue is down are found by later ones and fire. A first walk that was
cut short goes on at the next start, with the time of the first. When the globs of a deployed trigger change, the files that
only the new ones select are "there before" as well."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from oncue import ids
from oncue.triggers.file_options import Spec, selection
from oncue.triggers.ledger import Ledger

_RECENT_US = 86_400 * 1_000_000  # only a file changed this shortly before may still be written


class Baseline:
    def __init__(self, spec: Spec, ledger: Ledger) -> None:
        self._spec, self._ledger = spec, ledger
        self._since_us = 0  # 0: all was there before has been dealt with
        self._seen_before: Callable[[str, str], bool] | None = None
        done = ledger.meta("selects")
        if done == spec.selects:
            return
        if done:
            glob, ignore = msgspec.json.decode(done, type=tuple[str, tuple[str, ...]])
            self._seen_before = selection(glob, ignore)[0]
        since, _, selects = ledger.meta("baseline").partition(" ")
        if selects != spec.selects:
            since = str(ids.now_us())
            ledger.set_meta(baseline=f"{since} {spec.selects}")
        self._since_us = int(since)

    def was_there(self, folder: str, name: str, st: os.stat_result, writers: Callable[[], bool | None]) -> bool:
        """Whether this file, not remembered yet, is from before the trigger and complete."""
        if not self._since_us or self._spec.existing:
            return False
        if self._seen_before is not None and self._seen_before(folder, name):
            return False
        changed_us = st.st_ctime_ns // 1_000
        if changed_us >= self._since_us:
            return False
        return changed_us < self._since_us - _RECENT_US or writers() is not True

    def nothing_there(self) -> None:
        """The folder does not exist yet: whatever will be in it has come later."""
        if self._since_us and self._seen_before is None:
            self.finished()

    def finished(self) -> None:
        """All has been looked at."""
        if self._since_us:
            self._ledger.set_meta(selects=self._spec.selects)
            self._since_us, self._seen_before = 0, None
