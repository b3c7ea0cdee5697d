"""What a trigger has done lately, and why: nothing is silent. Written by one thread, read by any."""

from __future__ import annotations

from collections import deque

from oncue import ids
from oncue.triggers.base import Decision, Status

KEPT = 100


class ActivityLog:
    def __init__(self, scanned: bool = True) -> None:
        self.state, self.detail = "starting", ""
        self.scanned = scanned  # whether the first look has ended; a source without a past has none
        self.existing = 0  # files that were there before
        self.trouble = ""  # of another part: what keeps events from being stored
        self.emitted = self.skipped = self.last_us = 0
        self.last_skip, self.last_skip_us = "", 0
        self._ring: deque[Decision] = deque(maxlen=KEPT)

    def decisions(self) -> list[Decision]:
        """The last ones, oldest first."""
        return list(self._ring)

    def record_fired(self, path: str, why: str, at_us: int) -> None:
        self._ring.append(Decision(path, True, why, at_us))

    def record_skipped(self, path: str, why: str) -> None:
        """The trigger will not fire for this, as it is."""
        path = path.encode("utf-8", "backslashreplace").decode()  # names that are not UTF-8 must not break JSON
        self.skipped += 1
        self.last_skip, self.last_skip_us = f"{path}: {why}", ids.now_us()
        self._ring.append(Decision(path, False, why, self.last_skip_us))

    def record_waiting(self, path: str, why: str) -> None:
        """Not yet."""
        self._ring.append(Decision(path, False, why, ids.now_us()))

    def status(self) -> Status:
        state = self.state
        so_far = f"the first look is under way: {self.existing:,} files so far" if state == "looking" else ""
        return Status(
            state=state,
            detail="; ".join(filter(None, (so_far, self.detail, self.trouble))),
            scanned=self.scanned,
            existing=self.existing,
            emitted=self.emitted,
            skipped=self.skipped,
            last_us=self.last_us,
            last_skip=self.last_skip,
            last_skip_us=self.last_skip_us,
        )
