"""after: passes each event once a time has passed since it was accepted.

Events that wait keep their time when the rule is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.protocol.records import Event
from oncue.quantities import duration_text
from oncue.rules.matching.filters import as_text
from oncue.rules.operators.base import BUFFER, Fire, Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import about, duration, require, utc_text
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems


class AfterState(OperatorState, tag="after", frozen=True):
    """The event of a key that waits.

    Once it has fired, repeats of it are known for as long again.
    """

    since: int = 0  # when it was accepted
    until: int = 0  # when it fires; when it has fired, until when repeats are known
    fire: Fire | None = None  # None: it has fired

    def due_ms(self) -> int:
        return self.until if self.fire else 0

    def forget_ms(self) -> int:
        return 0 if self.fire else self.until or 1

    def buffered(self) -> int:
        return 1 if self.fire else 0

    def since_ms(self) -> int:
        return self.since

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, since=self.since + by_ms, until=self.until + by_ms)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if self.fire is None:
            return None
        state, fire = self.fired(max(at_ms, self.since), offset)
        return Step(state, (fire._replace(reason="changed" if reason == "changed" else "after"),))

    def fired(self, at_ms: int, offset: int) -> tuple[AfterState, Fire]:
        assert self.fire is not None
        return AfterState(offset, at_ms, at_ms + self.until - self.since), self.fire


class AfterOperator(Operator[AfterState], tag="after", frozen=True):
    delay_ms: int

    STATE = AfterState
    OPTIONS = ("delay",)
    EXAMPLE = "2d"
    BUFFERS = True
    PLAIN = "delay"
    KEEPS_STATES = True

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if not require(node, "after", cls.EXAMPLE, ("delay",), problems):
            return None
        return cls(key, duration(node.value["delay"], "after", problems))

    def default_key(self, event: Event) -> str:
        return as_text([event.source, event.id])

    def step(self, state: AfterState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        effects: tuple[Fire, ...] = ()
        if state is not None and state.fire is not None and match.at_ms >= state.until:
            state, fire = state.fired(state.until, offset)
            effects = (fire,)
        if state is not None and match.at_ms < state.until:
            return Step(msgspec.structs.replace(state, applied=offset), effects, suppressed=True)
        fire = Fire.of("after", match, offset)
        return Step(AfterState(offset, match.at_ms, match.at_ms + self.delay_ms, fire), (*effects, BUFFER))

    def describe(self) -> str:
        return f"after {duration_text(self.delay_ms)}{self.by_key()}"

    def preview(self, state: AfterState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        wanted = f"{duration_text(self.delay_ms)} have passed"
        if state is not None and state.fire is not None:
            found = f"it waits, and fires in {about(state.until - match.at_ms)}, at {utc_text(state.until)}"
            return OperatorFinding(True, found, wanted, found)
        if state is not None and match.at_ms < state.until:
            return OperatorFinding(False, f"it has fired {about(match.at_ms - state.since)} ago", wanted)
        text = f"it would wait for {duration_text(self.delay_ms)}"
        return OperatorFinding(True, "it does not wait yet", wanted, text)
