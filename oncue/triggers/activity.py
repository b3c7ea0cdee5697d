"""ActivityLog: counters and latest decisions of a trigger."""

from __future__ import annotations

from collections import deque

from oncue.clocks.process import now_us
from oncue.triggers.base import Decision, Status

MAX_DECISIONS = 100


class ActivityLog:
    """Records the decisions of a trigger. One thread writes, any thread reads."""

    def __init__(self, scanned: bool = True) -> None:
        """`scanned`: the initial scan has ended; True for a source without history."""
        self.state, self.detail = "starting", ""
        self.scanned = scanned
        self.existing = 0  # items that existed before the trigger
        self.trouble = ""  # why events cannot be stored at present
        self.emitted = self.skipped = self.last_us = 0
        self.last_skip, self.last_skip_us = "", 0
        self._decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)

    def decisions(self) -> list[Decision]:
        """Return the latest decisions, oldest first."""
        return list(self._decisions)

    def record_fired(self, item: str, why: str, at_us: int) -> None:
        self._decisions.append(Decision(item, True, why, at_us))

    def record_skipped(self, item: str, why: str) -> None:
        """Record an item that does not fire in its present state."""
        item = item.encode("utf-8", "backslashreplace").decode()  # JSON needs UTF-8
        self.skipped += 1
        self.last_skip, self.last_skip_us = f"{item}: {why}", now_us()
        self._decisions.append(Decision(item, False, why, self.last_skip_us))

    def record_waiting(self, item: str, why: str) -> None:
        """Record an item that may fire later."""
        self._decisions.append(Decision(item, False, why, now_us()))

    def status(self) -> Status:
        progress = ""
        if self.state == "looking":
            progress = f"initial scan running: {self.existing:,} existing files found so far"
        return Status(
            state=self.state,
            detail="; ".join(filter(None, (progress, self.detail, self.trouble))),
            scanned=self.scanned,
            existing=self.existing,
            emitted=self.emitted,
            skipped=self.skipped,
            last_us=self.last_us,
            last_skip=self.last_skip,
            last_skip_us=self.last_skip_us,
        )
