"""rate: so many firings of a key pass in any time of a length; the others wait.

Unlike `throttle`, it drops none.
"""

from __future__ import annotations

from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.limiters.base import Limiter, LimiterState, Verdict, key_text, parse_queue
from oncue.rules.operators.base import OperatorFinding
from oncue.rules.operators.options import about, duration, require, whole_number
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000  # firings whose times are remembered


class RateState(LimiterState, tag="rate", frozen=True):
    times: tuple[int, ...] = ()  # of the last firings that passed, the oldest first
    count: int = 1  # that may pass in `per_ms`, as of the last record
    per_ms: int = 0

    def due_ms(self) -> int:
        if not self.queued:
            return 0
        return (self.times[-self.count] + self.per_ms if len(self.times) >= self.count else 0) or 1

    def forget_ms(self) -> int:
        return 0 if self.queued else (self.times[-1] if self.times else 0) + self.per_ms or 1

    def since_ms(self) -> int:
        return self.times[-1] if self.times else 0

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, times=tuple(at_ms + by_ms for at_ms in self.times))


class RateLimiter(Limiter[RateState], tag="rate", frozen=True):
    count: int = 1
    per_ms: int = 1_000

    STATE = RateState
    OPTIONS = ("count", "per", "queue", "full")
    EXAMPLE = "{count: 100, per: 1m}"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        get = node.value.get
        require(node, "rate", cls.EXAMPLE, ("count", "per"), problems)
        count = whole_number(get("count"), "rate.count", MOST, problems)
        return cls(key, *parse_queue("rate", node, problems), count, duration(get("per"), "rate.per", problems))

    def admit(self, state: RateState, at_ms: int) -> Verdict:
        return Verdict.PASS if not state.queued and self.has_room(state, at_ms) else Verdict.QUEUE

    def has_room(self, state: RateState, at_ms: int) -> bool:
        return self._next_ms(state) <= at_ms

    def _next_ms(self, state: RateState) -> int:
        """Return when the next firing may pass; 0: at any time."""
        return state.times[-self.count] + self.per_ms if len(state.times) >= self.count else 0

    def enter(self, state: RateState, firing: bytes, at_ms: int) -> RateState:
        now_ms = max(at_ms, state.since_ms())
        return msgspec.structs.replace(state, times=(*state.times, now_ms)[-self.count :])

    def adapted(self, state: RateState) -> RateState:
        return msgspec.structs.replace(state, count=self.count, per_ms=self.per_ms)

    def describe(self) -> str:
        return f"at most {self._wanted()}{self.by_key()}"

    def _wanted(self) -> str:
        return f"{self.count:,} in {duration_text(self.per_ms)}"

    def preview(self, state: RateState | None, key: str, at_ms: int) -> OperatorFinding:
        wanted = f"less than {self._wanted()}"
        if state is None:
            return OperatorFinding(True, f"none has passed{key_text(self, key)}", wanted)
        found = self._found(state, key, at_ms)
        waits = self.admit(state, at_ms) is Verdict.QUEUE
        return OperatorFinding(True, found, wanted, f"it waits: {found}" if waits else "")

    def waits(self, state: RateState, key: str, at_ms: int) -> str:
        return f"{state.queued:,} wait: {self._found(state, key, at_ms)}"

    def _found(self, state: RateState, key: str, at_ms: int) -> str:
        passed = sum(then + self.per_ms > at_ms for then in state.times)
        text = f"{passed:,} of at most {self._wanted()} have passed{key_text(self, key)}"
        ahead_ms = self._next_ms(state) - at_ms
        return f"{text}, the next may in {about(ahead_ms)}" if ahead_ms > 0 else text
