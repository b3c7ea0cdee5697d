"""Token bucket: a limit on the average of something, which lets bursts pass."""

from __future__ import annotations


class TokenBucket:
    """Permits `burst` at once, and `per_s` on average.

    Times are in seconds, by any one clock. Steps of the clock back permit nothing.
    """

    __slots__ = ("_at", "_burst", "_per_s", "left")

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self.left, self._at = burst, 0.0

    def take(self, amount: float, now: float) -> bool:
        """Take an amount. Return False, and take nothing, if there is not enough."""
        self.left = min(self._burst, self.left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self.left < amount:
            return False
        self.left -= amount
        return True

    def wait_s(self, amount: float) -> float:
        """Return how long after the last `take` there is enough."""
        return (amount - self.left) / self._per_s

    def is_full(self, now: float) -> bool:
        """Return True if nothing is missing any more."""
        return now - self._at >= self._burst / self._per_s
