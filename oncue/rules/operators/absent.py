"""absent: fires for an event after which an expected one did not come.

The rule fires at the end of the time, with the event that began it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.ids import event_digest
from oncue.quantities import duration_text
from oncue.rules.operators.base import (
    BUFFER,
    DISCARD,
    Close,
    Effect,
    Fire,
    Operator,
    OperatorFinding,
    OperatorState,
    Step,
)
from oncue.rules.operators.options import about, duration, require
from oncue.rules.operators.patterns import pattern_hash
from oncue.rules.operators.records import DROP, Match, Waited
from oncue.rules.operators.selection import Parsers, PatternSelector, Selector
from oncue.strict_yaml.document import Node, Problems

AFTER, EXPECT = "after", "expect"


class AbsentState(OperatorState, tag="absent", frozen=True):
    within_ms: int = 0
    until: int = 0  # when it fires; without an event, when it is forgotten
    first: Fire | None = None  # of the event that waits; None: none does
    mark: bytes = b""  # of the last event that began to wait

    def due_ms(self) -> int:
        return self.until if self.first else 0

    def forget_ms(self) -> int:
        return 0 if self.first else self.until or 1

    def buffered(self) -> int:
        return 1 if self.first else 0

    def since_ms(self) -> int:
        return self.until - self.within_ms

    def moved(self, by_ms: int) -> Self:
        first = self.first and self.first.moved(by_ms)
        return msgspec.structs.replace(self, until=self.until + by_ms, first=first)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if self.first is None:
            return None
        effect: Effect = self.first
        if reason == "changed":  # the expected event may be another now
            why = "absent: the rule was changed while an event waited"
            effect = Close(self.first, Waited((EXPECT,), (EXPECT,), DROP, why))
        return Step(self.ended(at_ms, offset), (effect,))

    def ended(self, at_ms: int, offset: int) -> AbsentState:
        return AbsentState(offset, self.within_ms, at_ms + self.within_ms, None, self.mark)


class AbsentOperator(Operator[AbsentState], tag="absent", frozen=True):
    within_ms: int
    patterns: str = ""  # hash of both: others begin anew

    STATE = AbsentState
    OPTIONS = (AFTER, EXPECT, "within")
    EXAMPLE = "{after: scans, expect: metadata, within: 5m}"
    BUFFERS = True
    UNFIRED = "the expected events have come"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        require(node, "absent", cls.EXAMPLE, cls.OPTIONS, problems)
        patterns = "".join(pattern_hash(node.value.get(option)) for option in (AFTER, EXPECT))
        return cls(key, duration(node.value.get("within"), "absent.within", problems), patterns)

    @classmethod
    def selector(cls, node: Node, problems: Problems, parsers: Parsers) -> Selector | None:
        found = {
            option: pattern
            for option in (AFTER, EXPECT)
            if option in node.value
            and (pattern := parsers.pattern(node.value[option], f"absent.{option}", problems)) is not None
        }
        return PatternSelector.of(found, all_names=True, buffered=AFTER) if len(found) == len((AFTER, EXPECT)) else None

    def step(self, state: AbsentState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        now, effects = state or AbsentState(offset, self.within_ms), list[Effect]()
        if now.first is not None and match.at_ms >= now.until:
            effects.append(now.first)
            now = now.ended(now.until, offset)
        names = match.event.name.split("+")
        if EXPECT in names and now.first is not None and not self._is_last(now, match):
            effects.append(DISCARD)
            now = now.ended(match.at_ms, offset)
        now = msgspec.structs.replace(now, applied=offset)
        if AFTER not in names:
            return Step(now, tuple(effects))
        if now.first is not None or self._is_last(now, match):
            return Step(now, tuple(effects), suppressed=True)
        fire = Fire.of("absent", match, offset)
        until = match.at_ms + self.within_ms
        mark = event_digest(match.event.source, match.event.id)
        return Step(AbsentState(offset, self.within_ms, until, fire, mark), (*effects, BUFFER))

    def _is_last(self, now: AbsentState, match: Match) -> bool:
        """Return True if the event is told again that began to wait last."""
        return now.mark == event_digest(match.event.source, match.event.id)

    def describe(self) -> str:
        return f"absent{self.by_key()}: {self._wanted()}"

    def _wanted(self) -> str:
        return f"nothing expected within {duration_text(self.within_ms)}"

    def preview(self, state: AbsentState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        names, wanted = match.event.name.split("+"), self._wanted()
        waits = state is not None and state.first is not None and match.at_ms < state.until
        found = f"one waits, for another {about(state.until - match.at_ms)}" if waits and state else "none waits"
        if AFTER not in names:
            return OperatorFinding(False, f"it is the expected event; {found}", wanted)
        if state is not None and self._is_last(state, match):
            return OperatorFinding(False, f"the event has come already; {found}", wanted)
        if waits and EXPECT not in names:
            return OperatorFinding(False, f"another event began to wait before; {found}", wanted)
        return OperatorFinding(True, found, wanted, f"it fires in {duration_text(self.within_ms)} if nothing comes")
