"""Deadline: the rest of a timeout."""

from __future__ import annotations

import time


class Deadline:
    """Point in time `seconds` from now; None is never.

    A call makes one and passes it on, so that error messages show the timeout that was requested,
    not the rest of it.
    """

    __slots__ = ("deadline", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def past(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def left(self, most: float | None = None) -> float | None:
        """Return the seconds left: at least 0, at most `most`."""
        if self.deadline is None:
            return most
        left = max(0.0, self.deadline - time.monotonic())
        return left if most is None else min(left, most)

    def __str__(self) -> str:
        return "no time" if self.seconds is None else f"{self.seconds:g} s"


FOREVER = Deadline(None)
