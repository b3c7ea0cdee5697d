"""dedupe: passes the first event of a key.

Later events of the key are suppressed until `ttl` after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.protocol.records import Event
from oncue.quantities import duration_text
from oncue.rules.matching.filters import as_text
from oncue.rules.operators.base import Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import about, duration
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems


class DedupeState(OperatorState, tag="dedupe", frozen=True):
    fired_ms: int
    until_ms: int
    suppressed: int = 0  # since it fired

    def forget_ms(self) -> int:
        return self.until_ms

    def since_ms(self) -> int:
        return self.fired_ms

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, fired_ms=self.fired_ms + by_ms, until_ms=self.until_ms + by_ms)


class DedupeOperator(Operator[DedupeState], tag="dedupe", frozen=True):
    ttl_ms: int

    STATE = DedupeState
    OPTIONS = ("ttl",)
    EXAMPLE = "{ttl: 10m}"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if "ttl" not in node.value:
            problems.add(node, "`dedupe` lacks the key 'ttl'")
            return None
        return cls(key, duration(node.value["ttl"], "dedupe.ttl", problems))

    def default_key(self, event: Event) -> str:
        return as_text([event.source, event.id])

    def step(self, state: DedupeState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        if state is not None and match.at_ms < state.until_ms:
            same = msgspec.structs.replace(state, applied=offset, suppressed=state.suppressed + 1)
            return Step(same, suppressed=True)
        return Step(DedupeState(offset, match.at_ms, match.at_ms + self.ttl_ms), passes=True)

    def describe(self) -> str:
        return f"dedupe{self.by_key()} for {duration_text(self.ttl_ms)}"

    def preview(self, state: DedupeState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        wanted = f"no other within {duration_text(self.ttl_ms)}"
        if state is None or match.at_ms >= state.until_ms:
            return OperatorFinding(True, f"the key {key} has not fired", wanted)
        ago = about(match.at_ms - state.fired_ms)
        found = f"the key {key} fired {ago} ago, ttl {duration_text(self.ttl_ms)}"
        if state.suppressed:
            found += f", {state.suppressed:,} suppressed since"
        return OperatorFinding(False, found, wanted)
