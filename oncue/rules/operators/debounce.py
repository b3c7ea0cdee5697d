"""debounce: passes the newest event of a key, once no other came for `quiet`.

With `max`, it waits so long after the first of them at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.operators.base import BUFFER, DISCARD, Effect, Fire, Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import about, duration, require
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems


class DebounceState(OperatorState, tag="debounce", frozen=True):
    """The event of a key that waits; without one, when the last has fired."""

    since: int = 0  # when the first of them came, or the last has fired
    until: int = 0  # when it fires
    count: int = 0  # events since the last has fired
    newest: Fire | None = None  # None: no event waits

    def due_ms(self) -> int:
        return self.until if self.newest else 0

    def forget_ms(self) -> int:
        return 0 if self.newest else self.since or 1

    def buffered(self) -> int:
        return 1 if self.newest else 0

    def since_ms(self) -> int:
        return self.since

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, since=self.since + by_ms, until=self.until and self.until + by_ms)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if self.newest is None:
            return None
        why = "quiet" if reason == "wait" else reason
        return Step(DebounceState(offset, at_ms), (self.newest._replace(reason=why),))


class DebounceOperator(Operator[DebounceState], tag="debounce", frozen=True):
    quiet_ms: int
    max_ms: int = 0  # 0: as long as events come

    STATE = DebounceState
    OPTIONS = ("quiet", "max")
    EXAMPLE = "{quiet: 10s}"
    BUFFERS = True

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if not require(node, "debounce", cls.EXAMPLE, ("quiet",), problems):
            return None
        quiet_ms = duration(node.value["quiet"], "debounce.quiet", problems)
        max_ms = duration(node.value.get("max"), "debounce.max", problems)
        if max_ms and quiet_ms > max_ms:
            problems.add(
                node.value["max"], "debounce.max is shorter than debounce.quiet", "it fires after `max` always"
            )
        return cls(key, quiet_ms, max_ms)

    def step(self, state: DebounceState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        waiting = state if state is not None and state.newest is not None else None
        effects: tuple[Effect, ...] = ()
        if waiting is not None and waiting.newest is not None:
            over = match.at_ms >= waiting.until
            effects, waiting = ((waiting.newest,), None) if over else ((DISCARD,), waiting)
        since = waiting.since if waiting is not None else match.at_ms
        until = match.at_ms + self.quiet_ms
        until = min(until, since + self.max_ms) if self.max_ms else until
        count = waiting.count + 1 if waiting is not None else 1
        newest = Fire.of("quiet", match, offset)
        return Step(DebounceState(offset, since, until, count, newest), (*effects, BUFFER))

    def describe(self) -> str:
        most = f", {duration_text(self.max_ms)} at most" if self.max_ms else ""
        return f"debounce{self.by_key()} for {duration_text(self.quiet_ms)}{most}"

    def preview(self, state: DebounceState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        wanted = f"no other event for {duration_text(self.quiet_ms)}"
        if state is None or state.newest is None:
            return OperatorFinding(True, "no event waits", wanted, f"it waits for {duration_text(self.quiet_ms)}")
        found = f"the newest of {state.count:,} events waits, and fires in {about(state.until - match.at_ms)}"
        return OperatorFinding(True, found, wanted, f"it replaces the event that waits: {found}")
