"""How long a caller waits."""

from __future__ import annotations

import time


class Deadline:
    """So many `seconds` from now; None: for ever. One for all of a call, so that what it says of itself is what was asked
    for, and not what was left of it in the end."""

    __slots__ = ("deadline", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def past(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def left(self, most: float | None = None) -> float | None:
        """Seconds, not below 0 and not above `most`."""
        if self.deadline is None:
            return most
        left = max(0.0, self.deadline - time.monotonic())
        return left if most is None else min(left, most)

    def __str__(self) -> str:
        return "no time" if self.seconds is None else f"{self.seconds:g} s"


FOREVER = Deadline(None)
