"""Difference between two processes' clocks, from the times in messages."""

from __future__ import annotations

TOLERANCE_US = 5_000_000  # clocks that differ by less are right


class PeerClock:
    """Difference between the clocks of a peer and of this process."""

    def __init__(self, tolerance_us: int = TOLERANCE_US) -> None:
        self._tolerance_us = tolerance_us
        self.ahead_us = 0  # of the peer; 0 within the tolerance
        self.known = False

    def measure(self, at_us: int, now_us: int) -> None:
        """Note a message that the peer sent at `at_us` by its clock; 0: it does not say.

        A message's delay counts as a difference too, so small changes are ignored.
        """
        if not at_us:
            return
        ahead = at_us - now_us
        self.known = True
        if abs(ahead - self.ahead_us) > self._tolerance_us:
            self.ahead_us = ahead if abs(ahead) > self._tolerance_us else 0
