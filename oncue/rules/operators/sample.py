"""sample: passes the `first` events of a key, or one in `every` N.

A key begins anew when no event came for `ttl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.operators.base import Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import duration, whole_number
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000_000_000
TTL_MS = 86_400_000  # without `ttl`


class SampleState(OperatorState, tag="sample", frozen=True):
    """Events of a key so far."""

    newest_ms: int
    until: int  # it begins anew then, if no event comes
    seen: int

    def forget_ms(self) -> int:
        return self.until

    def since_ms(self) -> int:
        return self.newest_ms

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, newest_ms=self.newest_ms + by_ms, until=self.until + by_ms)


class SampleOperator(Operator[SampleState], tag="sample", frozen=True):
    first: int = 0  # 0: not limited
    every: int = 1
    ttl_ms: int = TTL_MS

    STATE = SampleState
    OPTIONS = ("first", "every", "ttl")
    EXAMPLE = '{key: "${data.scan}", every: 10}'

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if "first" not in node.value and "every" not in node.value:
            problems.add(node, "`sample` needs `first` or `every`, or both", f"sample: {cls.EXAMPLE}")
            return None
        first = whole_number(node.value.get("first"), "sample.first", MOST, problems)
        every = whole_number(node.value.get("every"), "sample.every", MOST, problems) or 1
        return cls(key, first, every, duration(node.value.get("ttl"), "sample.ttl", problems) or TTL_MS)

    def step(self, state: SampleState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        seen = self._seen(state, match.at_ms)
        now = SampleState(offset, match.at_ms, match.at_ms + self.ttl_ms, seen + 1)
        passes = self._passes(seen)
        return Step(now, passes=passes, suppressed=not passes)

    def _seen(self, state: SampleState | None, at_ms: int) -> int:
        return state.seen if state is not None and at_ms < state.until else 0

    def _passes(self, seen: int) -> bool:
        """Return True if the event after `seen` others is taken."""
        return seen % self.every == 0 and (not self.first or seen // self.every < self.first)

    def describe(self) -> str:
        return f"sample{self.by_key()} of {self._taken()}"

    def _taken(self) -> str:
        parts = [f"the first {self.first:,}"] if self.first else []
        parts += [f"one in {self.every:,}"] if self.every > 1 or not self.first else []
        return " of ".join(parts)

    def preview(self, state: SampleState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        seen = self._seen(state, match.at_ms)
        kept = f"; begins anew after {duration_text(self.ttl_ms)} without one" if seen else ""
        return OperatorFinding(self._passes(seen), f"it is number {seen + 1:,} of its key{kept}", self._taken())
