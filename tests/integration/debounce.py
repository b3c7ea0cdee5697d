"""debounce: an operator that the package does not have. A key fires with its newest event, once none came for `quiet`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from oncue.quantities import duration_text
from oncue.rules.operators.base import BUFFER, DISCARD, Finding, Fire, Operator, OperatorState, Step
from oncue.rules.operators.options import duration
from oncue.rules.operators.records import Match
from oncue.rules.yaml_document import Node, Problems


class DebounceState(OperatorState, tag="debounce", frozen=True):
    quiet_from_ms: int
    newest: Fire | None = None  # None: it has fired

    def due_ms(self) -> int:
        return self.quiet_from_ms if self.newest else 0

    def forget_ms(self) -> int:
        return 0 if self.newest else self.quiet_from_ms

    def buffered(self) -> int:
        return 1 if self.newest else 0

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        return Step(DebounceState(offset, at_ms), (self.newest,)) if self.newest else None


class Debounce(Operator[DebounceState], tag="debounce", frozen=True):
    quiet_ms: int

    STATE, OPTIONS, EXAMPLE, BUFFERS = DebounceState, ("quiet",), "{quiet: 10s}", True

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        return cls(key, duration(node.value.get("quiet"), "debounce.quiet", problems))

    def step(self, state: DebounceState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        over = state is not None and state.newest is not None and match.at_ms >= state.quiet_from_ms
        before = state.newest if over and state is not None and state.newest is not None else DISCARD
        newest = Fire.of("quiet", match, offset)
        return Step(DebounceState(offset, match.at_ms + self.quiet_ms, newest), (before, BUFFER))

    def describe(self) -> str:
        return f"debounce{self.by_key()} for {duration_text(self.quiet_ms)}"

    def preview(self, state: DebounceState | None, match: Match, key: str, known: bool) -> Finding:
        waiting = "replaces the event that waits" if state is not None and state.newest else "is the first"
        return Finding(True, waiting, f"quiet for {duration_text(self.quiet_ms)}", f"it {waiting}")
