"""mode: paused: all firings of a rule wait until it has another mode."""

from __future__ import annotations

import msgspec

from oncue.rules.limiters.base import MOST_QUEUE, Limiter, LimiterState, Verdict
from oncue.rules.operators.base import OperatorFinding

MODES = ("on", "shadow", "paused")
RESUMES = ("catch-up", "latest")


class PauseState(LimiterState, tag="mode", frozen=True):
    latest: bool = False  # only the newest of those that wait is to run

    def forget_ms(self) -> int:
        return 0 if self.queued else self.at_ms or 1


class PauseLimiter(Limiter[PauseState], tag="mode", frozen=True):
    latest: bool = False

    STATE = PauseState
    OPTIONS = ()
    EXAMPLE = "paused"
    PAUSES = True

    def counts_all(self) -> bool:
        """Return False if all firings wait.

        So operators keep their states while the rule is paused.
        """
        return self.latest

    def admit(self, state: PauseState, at_ms: int) -> Verdict:
        return Verdict.REPLACE if self.latest else Verdict.QUEUE

    def has_room(self, state: PauseState, at_ms: int) -> bool:
        return False

    def enter(self, state: PauseState, firing: bytes, at_ms: int) -> PauseState:
        return state

    def adapted(self, state: PauseState) -> PauseState:
        return msgspec.structs.replace(state, latest=self.latest)

    def describe(self) -> str:
        return f"paused, and {'the latest' if self.latest else 'all'} will run later"

    def preview(self, state: PauseState | None, key: str, at_ms: int) -> OperatorFinding:
        queued = state.queued if state is not None else 0
        found = f"the rule is paused, and {queued:,} wait"
        return OperatorFinding(True, found, "another mode", f"it waits: {found}")

    def waits(self, state: PauseState, key: str, at_ms: int) -> str:
        return f"{state.queued:,} wait: the rule has `mode: paused`"


def pause_limiter(latest: bool) -> PauseLimiter:
    """Return the limiter of a paused rule."""
    return PauseLimiter("", MOST_QUEUE, latest=latest)
