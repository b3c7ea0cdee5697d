"""Measured durations of tasks, by function: percentiles from histograms. Pure."""

from __future__ import annotations

STEPS = 4  # buckets for each doubling: a percentile is at most 25 % too long
BUCKETS = STEPS * 40  # up to 12 days, from 1 µs
MOST = 500  # samples that count; older ones count less and less
FUNCTIONS = 10_000  # remembered


class Durations:
    """Histograms of durations, on a logarithmic scale."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._totals: dict[str, int] = {}

    def add(self, function: str, took_us: int) -> None:
        """Add the duration of one task."""
        counts = self._counts.get(function)
        if counts is None:
            counts = self._counts[function] = [0] * BUCKETS
            if len(self._counts) > FUNCTIONS:
                oldest = next(iter(self._counts))
                del self._counts[oldest], self._totals[oldest]
        counts[_bucket(took_us)] += 1
        total = self._totals[function] = self._totals.get(function, 0) + 1
        if total > MOST:
            self._counts[function] = [n // 2 for n in counts]
            self._totals[function] = sum(self._counts[function])

    def percentile_us(self, function: str, share: float = 0.95) -> int:
        """Return a duration that this share of tasks does not exceed; 0: not known."""
        counts = self._counts.get(function)
        if counts is None:
            return 0
        left, longest = self._totals[function] * (1 - share), 0
        for bucket in range(BUCKETS - 1, -1, -1):
            if counts[bucket]:
                longest = longest or bucket
                left -= counts[bucket]
                if left <= 0:
                    return _end_us(bucket)
        return _end_us(longest)


def _bucket(took_us: int) -> int:
    """Return the bucket of a duration: STEPS equal ones within each doubling."""
    whole = max(1, took_us).bit_length() - 1
    part = (max(1, took_us) * STEPS >> whole) - STEPS
    return min(BUCKETS - 1, whole * STEPS + part)


def _end_us(bucket: int) -> int:
    """Return the end of a bucket, rounded up."""
    whole, part = divmod(bucket, STEPS)
    return -(-(STEPS + part + 1 << whole) // STEPS)
