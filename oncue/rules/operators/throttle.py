"""throttle: passes `count` events of a key in each `per`; suppresses the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.operators.base import Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import about, duration, require, whole_number
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000_000  # events in one `per`


class ThrottleState(OperatorState, tag="throttle", frozen=True):
    """The period of a key that runs, or ran last. It begins with an event."""

    began: int
    until: int
    passed: int
    suppressed: int = 0

    def forget_ms(self) -> int:
        return self.until

    def since_ms(self) -> int:
        return self.began

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, began=self.began + by_ms, until=self.until + by_ms)


class ThrottleOperator(Operator[ThrottleState], tag="throttle", frozen=True):
    per_ms: int
    count: int = 1

    STATE = ThrottleState
    OPTIONS = ("count", "per")
    EXAMPLE = "{count: 1, per: 10s}"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if not require(node, "throttle", cls.EXAMPLE, ("per",), problems):
            return None
        count = whole_number(node.value.get("count"), "throttle.count", MOST, problems) or 1
        return cls(key, duration(node.value["per"], "throttle.per", problems), count)

    def step(self, state: ThrottleState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        if state is None or match.at_ms >= state.until:
            return Step(ThrottleState(offset, match.at_ms, match.at_ms + self.per_ms, 1), passes=True)
        if state.passed < self.count:
            return Step(msgspec.structs.replace(state, applied=offset, passed=state.passed + 1), passes=True)
        more = msgspec.structs.replace(state, applied=offset, suppressed=state.suppressed + 1)
        return Step(more, suppressed=True)

    def describe(self) -> str:
        return f"throttle{self.by_key()} to {self._limit()}"

    def _limit(self) -> str:
        return f"{self.count:,} in {duration_text(self.per_ms)}"

    def preview(self, state: ThrottleState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        wanted = f"at most {self._limit()}"
        if state is None or match.at_ms >= state.until:
            return OperatorFinding(True, "no period runs: it would begin one", wanted)
        found = f"{state.passed:,} of {self.count:,} have passed, {about(state.until - match.at_ms)} are left"
        if state.suppressed:
            found += f", {state.suppressed:,} suppressed"
        return OperatorFinding(state.passed < self.count, found, wanted)
