"""Time by which stored records grow old.

A process's time does not step (oncue/clocks/process.py), but a new process begins with the system
clock. If that was wrong, all records would be too old at once. So a jump between two runs counts
only after the server has run for CONFIRM_S with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from oncue.clocks.process import now_us
from oncue.disk.durable_files import replace_file
from oncue.quantities import duration_text

log = logging.getLogger("oncue.housekeeper")
JUMP_US = 86_400 * 1_000_000  # more than a pause for maintenance
SAVED_US = 120_000_000  # more than between two calls of `save`
PERIODS = 8  # wrong ones that are kept
CONFIRM_US = 3 * 86_400 * 1_000_000  # over a weekend


class _Stored(msgspec.Struct):
    seen_us: int  # when it was stored
    withheld_us: int = 0  # the jump that does not count yet
    left_us: int = 0  # running time until it does, or until a clock that is behind counts as right
    highest_us: int = 0  # before the clock was set back; 0: it was not
    behind_from_us: int = 0  # when it was set back, by that clock
    wrong: list[tuple[int, int]] = []  # periods of a clock that was behind and has been put right


class RetentionClock:
    """Unix time without a jump between two runs that is not confirmed."""

    def __init__(self, file: Path, clock_us: Callable[[], int] = now_us) -> None:
        self._file, self._clock_us = file, clock_us
        self._stored = _Stored(clock_us())

    def start(self, newest_us: int = 0) -> None:
        """Compare the time with that of the last run.

        `newest_us`: time of the newest stored task, for a folder without the file; 0: none.
        """
        now = self._clock_us()
        self._stored = self._load() or _Stored(newest_us or now)
        self._begin(now, now - max(self._stored.seen_us, self._stored.highest_us))
        self._stored.seen_us = now
        self.save()

    def _load(self) -> _Stored | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Stored)
        except (OSError, msgspec.MsgspecError):
            return None

    def _begin(self, now: int, gap_us: int) -> None:
        stored, gap = self._stored, duration_text(abs(gap_us) // 1_000_000 * 1_000)
        if gap_us > JUMP_US:
            stored.withheld_us, stored.left_us = stored.withheld_us + gap_us, CONFIRM_US
            log.warning(
                "the clock is %s ahead of when this server ran last: nothing is deleted because of that time until "
                "the server has run for %s; if the clock is wrong, set it and restart the server",
                gap,
                duration_text(CONFIRM_US // 1_000),
            )
        elif gap_us < -JUMP_US:
            log.warning("the clock is %s behind when this server ran last; is it right?", gap)
            # Either the jump before was wrong, or this clock is, and will be put right.
            stored.highest_us = 0 if stored.withheld_us else max(stored.seen_us, stored.highest_us)
            stored.withheld_us, stored.left_us = 0, CONFIRM_US if stored.highest_us else 0
            stored.behind_from_us = min(now, stored.behind_from_us or now)
            return
        if stored.highest_us and now > stored.highest_us - JUMP_US:  # put right
            stored.wrong = [*stored.wrong[1 - PERIODS :], (stored.behind_from_us, stored.seen_us + SAVED_US)]
            stored.highest_us = stored.behind_from_us = 0

    def wrong_periods(self) -> list[tuple[int, int]]:
        """Return the periods (first, last) in which records got times that are too early."""
        return self._stored.wrong

    def now_us(self) -> int:
        """Return the time by which records are old."""
        return self._clock_us() - self._stored.withheld_us

    def save(self) -> None:
        """Store the time, and count that the server runs. Call it every minute."""
        stored, now = self._stored, self._clock_us()
        stored.left_us = max(0, stored.left_us - max(0, now - stored.seen_us))
        if stored.withheld_us and not stored.left_us:
            log.warning("the clock's jump is confirmed: what is too old by it is deleted from now on")
            stored.withheld_us = 0
        if not stored.left_us:
            stored.highest_us = stored.behind_from_us = 0
        stored.seen_us = now
        try:
            replace_file(self._file, msgspec.json.encode(stored), durable=False)
        except OSError as e:
            log.warning("%s could not be written: %s", self._file, e.strerror)
