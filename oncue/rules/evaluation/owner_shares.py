"""OwnerShares: how long the rules of one owner keep those of others waiting.

Rules are tested one after the other. For each event, the rules of one owner have EVENT_S. What
they take beyond that is lent, and repaid as time passes. Once LENT_S is lent to an owner, their
rules get no more than EVENT_S for an event; the rest of them are left untested.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EVENT_S = 0.02
LENT_S = 30.0
REPAID_PER_S = 0.5


class DecayingTime:
    """Time that each owner has used, less what was forgiven since."""

    def __init__(self, forgiven_per_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._forgiven_per_s, self._clock_s = forgiven_per_s, clock_s
        self._found: dict[str, tuple[float, float]] = {}  # owner -> (time, at)

    def get(self, owner: str) -> float:
        used_s, at = self._found.get(owner, (0.0, 0.0))
        return max(0.0, used_s - self._forgiven_per_s * (self._clock_s() - at))

    def add(self, owner: str, seconds: float) -> None:
        self._found[owner] = (self.get(owner) + seconds, self._clock_s())


class OwnerShares:
    def __init__(self) -> None:
        self._lent = DecayingTime(REPAID_PER_S)

    def of_event(self) -> EventShares:
        return EventShares(self._lent)

    def lend(self, owner: str, seconds: float) -> None:
        """Count time of a piece of work that has no share."""
        self._lent.add(owner, seconds)

    def owes_much(self, owner: str) -> bool:
        """Return True if no more work without a share is to be done for this owner."""
        return self._lent.get(owner) > LENT_S


def used_up(owner: str) -> str:
    """Return why rules of an owner are left out, for people."""
    return f"rules of {owner} have kept those of others waiting for {LENT_S:g} s"


class EventShares:
    """The shares of one event: what the rules of each owner use for it."""

    def __init__(self, lent: DecayingTime) -> None:
        self._lent = lent
        self._used: dict[str, float] = {}

    def add(self, owner: str, seconds: float) -> None:
        before = self._used.get(owner, 0.0)
        self._used[owner] = after = before + seconds
        if after > EVENT_S:
            self._lent.add(owner, after - max(before, EVENT_S))

    def are_used_up(self, owner: str) -> bool:
        """Return True if no more rules of this owner are to be tested for the event."""
        return self._used.get(owner, 0.0) > EVENT_S and self._lent.get(owner) > LENT_S
