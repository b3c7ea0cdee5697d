"""StartProgress: how far the start of a server is.

The server logs it, and /health/ready answers it.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger("oncue.server")
PREFIX = "starting: "  # of the log line, which `oncue up --detach` shows
LOG_S = 1.0


class StartProgress:
    """The current phase of a start, and the records that it has done."""

    def __init__(self) -> None:
        self._phase, self._total, self._done = "opening the log", 0, 0
        self._began = self._logged = time.monotonic()

    def begin(self, phase: str, total: int = 0) -> None:
        """Enter a phase. `total`: the records that it has to do; 0: not counted."""
        self._phase, self._total, self._done = phase, total, 0
        self._began = time.monotonic()
        self._log()

    def advance(self, done: int) -> None:
        """Note how many records are done. Logs it at most once a second."""
        self._done = done
        self._log()

    @property
    def text(self) -> str:
        """The phase, how much of it is done, and how long the rest may take."""
        if not self._total:
            return self._phase
        share = min(1.0, self._done / self._total)
        text = f"{self._phase}: {100 * share:.0f} % ({self._done:,} of {self._total:,} records)"
        if not self._done:
            return text
        return f"{text}, about {_duration((time.monotonic() - self._began) * (1 - share) / share)} left"

    def _log(self) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_S:
            self._logged = now
            log.info("%s%s", PREFIX, self.text)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
