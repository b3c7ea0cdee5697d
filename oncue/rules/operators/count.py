"""count: fires for `n` events of a key that have come `within` a time.

The time slides: the last `n` events count. After it has fired, it counts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.operators.base import (
    BUFFER,
    DISCARD,
    DropBefore,
    Effect,
    Fire,
    Operator,
    OperatorFinding,
    OperatorState,
    Step,
)
from oncue.rules.operators.batch import WINDOW_BYTES, stored_bytes
from oncue.rules.operators.options import duration, require, whole_number
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000  # events that are counted
FEW = 16  # stale events that are not worth a change of the buffer


class CountState(OperatorState, tag="count", frozen=True):
    """Events of a key that still count: (offset, time, bytes) of each, oldest first."""

    events: tuple[tuple[int, int, int], ...] = ()
    until: int = 0  # when the newest counts no more
    stale: int = 0  # events in the buffer that count no more

    def due_ms(self) -> int:
        return self.until if self.events else 0

    def forget_ms(self) -> int:
        return 0 if self.events else self.until or 1

    def buffered(self) -> int:
        return len(self.events) + self.stale if self.events else 0

    def since_ms(self) -> int:
        return self.events[-1][1] if self.events else self.until

    def moved(self, by_ms: int) -> Self:
        events = tuple((place, at_ms + by_ms, size) for place, at_ms, size in self.events)
        return msgspec.structs.replace(self, events=events, until=self.until and self.until + by_ms)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        return Step(CountState(offset, (), at_ms), (DISCARD,)) if self.events else None


class CountOperator(Operator[CountState], tag="count", frozen=True):
    n: int
    within_ms: int

    STATE = CountState
    OPTIONS = ("n", "within")
    EXAMPLE = "{n: 5, within: 10m}"
    BUFFERS = True
    FIRES_MANY = True
    UNFIRED = "too few events have come"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        require(node, "count", cls.EXAMPLE, cls.OPTIONS, problems)
        n = whole_number(node.value.get("n"), "count.n", MOST, problems)
        return cls(key, n, duration(node.value.get("within"), "count.within", problems))

    def step(self, state: CountState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        before = state or CountState(-1)
        if before.events and known():
            return Step(msgspec.structs.replace(before, applied=offset))
        kept = [e for e in before.events if e[1] > match.at_ms - self.within_ms]
        kept.append((offset, match.at_ms, stored_bytes(match.event)))
        while sum(size for _, _, size in kept) > WINDOW_BYTES and len(kept) > 1:
            kept.pop(0)
        fires = len(kept) >= self.n
        stale = before.stale + len(before.events) + 1 - len(kept)
        effects: tuple[Effect, ...] = (BUFFER,)
        if stale and (fires or stale >= max(self.n, FEW)):
            effects, stale = (DropBefore(kept[0][0]), BUFFER), 0
        if not fires:
            return Step(CountState(offset, tuple(kept), match.at_ms + self.within_ms, stale), effects)
        fire = Fire("count", kept[0][0], kept[0][1], match.label, match.version, match.needs)
        return Step(CountState(offset, (), match.at_ms), (*effects, fire))

    def describe(self) -> str:
        return f"count{self.by_key()} of {self._wanted()}"

    def _wanted(self) -> str:
        return f"{self.n:,} events within {duration_text(self.within_ms)}"

    def preview(self, state: CountState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        events = state.events if state is not None else ()
        kept = sum(at_ms > match.at_ms - self.within_ms for _, at_ms, _ in events)
        found = f"{kept:,} events have come"
        fires = "it makes the rule fire" if kept + 1 >= self.n and not known else "it is counted"
        return OperatorFinding(True, found, self._wanted(), fires)
