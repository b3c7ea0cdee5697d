"""sequence: fires for events that come one after the other, within a time.

The time begins with the event of the first step. Another one of the first step begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.quantities import duration_text
from oncue.rules.operators.base import (
    BUFFER,
    Close,
    Effect,
    Fire,
    Operator,
    OperatorFinding,
    OperatorState,
    Step,
)
from oncue.rules.operators.batch import WINDOW_BYTES, stored_bytes
from oncue.rules.operators.options import about, duration, require
from oncue.rules.operators.patterns import named_patterns, pattern_hash
from oncue.rules.operators.records import DEAD, DROP, Match, Waited
from oncue.rules.operators.selection import Parsers, Selector
from oncue.strict_yaml.document import Node, Problems

LEAST_STEPS = 2


class SequenceState(OperatorState, tag="sequence", frozen=True):
    """The steps of a key that have come."""

    steps: tuple[str, ...] = ()
    came: int = 0  # so many of them
    within_ms: int = 0
    until: int = 0
    nbytes: int = 0
    first: Fire | None = None  # None: none has come

    def due_ms(self) -> int:
        return self.until if self.first else 0

    def forget_ms(self) -> int:
        return 0 if self.first else self.until or 1

    def buffered(self) -> int:
        return self.came if self.first else 0

    def since_ms(self) -> int:
        return self.until - self.within_ms if self.first else self.until

    def moved(self, by_ms: int) -> Self:
        first = self.first and self.first.moved(by_ms)
        return msgspec.structs.replace(self, until=self.until + by_ms, first=first)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if self.first is None:
            return None
        when = "when the rule was changed" if reason == "changed" else f"within {duration_text(self.within_ms)}"
        return Step(SequenceState(offset, until=at_ms), (self.closed(self.first, DROP, when),))

    def closed(self, fire: Fire, end: str = "", when: str = "") -> Close:
        missing = self.steps[self.came :]
        why = f"sequence: {', '.join(self.steps[: self.came])} came, and {', '.join(missing)} not {when}" if end else ""
        return Close(fire, Waited(self.steps, missing, end, why))


class SequenceOperator(Operator[SequenceState], tag="sequence", frozen=True):
    within_ms: int
    steps: tuple[str, ...] = ()
    patterns: str = ""  # hash of `steps`: others begin anew

    STATE = SequenceState
    OPTIONS = ("steps", "within")
    EXAMPLE = "{steps: [{opened: shutter}, {armed: detector}], within: 1m}"
    BUFFERS = True
    FIRES_MANY = True
    UNFIRED = "not all steps have come"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        require(node, "sequence", cls.EXAMPLE, cls.OPTIONS, problems)
        steps = node.value.get("steps")
        names = _names(steps, problems) if steps is not None else None
        within_ms = duration(node.value.get("within"), "sequence.within", problems)
        return cls(key, within_ms, tuple(names.value) if names else (), pattern_hash(steps))

    @classmethod
    def selector(cls, node: Node, problems: Problems, parsers: Parsers) -> Selector | None:
        steps = node.value.get("steps")
        names = _names(steps, None) if steps is not None else None
        return named_patterns(names, "sequence.steps", problems, parsers) if names else None

    def step(self, state: SequenceState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        effects: tuple[Effect, ...] = ()
        now = state
        if now is not None and now.first is not None and match.at_ms >= now.until:
            over = now.tick(now.until, offset, "wait")
            effects, now = (over.effects if over else ()), None
        name, came = match.event.name, now.came if now is not None else 0
        if came and known():
            return Step(msgspec.structs.replace(now or SequenceState(offset), applied=offset), effects, suppressed=True)
        again = came > 0 and name == self.steps[0]
        if name != self.steps[came] and not again:
            now = msgspec.structs.replace(now or SequenceState(offset, until=match.at_ms), applied=offset)
            return Step(now, effects, suppressed=True)
        if came == 0 or again:
            if now is not None and now.first is not None:
                effects = (*effects, now.closed(now.first, DROP, "before it began anew"))
            fire = Fire.of("sequence", match, offset)
            now = SequenceState(offset, self.steps, 0, self.within_ms, match.at_ms + self.within_ms, 0, fire)
        assert now is not None
        assert now.first is not None
        nbytes = now.nbytes + stored_bytes(match.event)
        first = now.first._replace(label=match.label, version=match.version)
        now = msgspec.structs.replace(now, applied=offset, came=now.came + 1, nbytes=nbytes, first=first)
        effects = (*effects, BUFFER)
        if now.came == len(self.steps):
            return Step(SequenceState(offset, until=match.at_ms), (*effects, now.closed(first)))
        if nbytes > WINDOW_BYTES:
            full = now.closed(first, DEAD, "before there was more than 1 MB for `args`")
            return Step(SequenceState(offset, until=match.at_ms), (*effects, full))
        return Step(now, effects)

    def describe(self) -> str:
        return f"sequence{self.by_key()} of {self._wanted()}"

    def _wanted(self) -> str:
        return f"{', then '.join(self.steps)} within {duration_text(self.within_ms)}"

    def preview(self, state: SequenceState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        step = self.step(state, match, (state.applied if state else 0) + 1, lambda: known)
        came = state.came if state is not None and state.first is not None and match.at_ms < state.until else 0
        found = f"{came} of {len(self.steps)} have come: next is {self.steps[came]}"
        if came and state is not None:
            found += f", for another {about(state.until - match.at_ms)}"
        now = step.state
        assert isinstance(now, SequenceState)
        if not any(effect is BUFFER for effect in step.effects):
            return OperatorFinding(False, f"{match.event.name} is not next; {found}", self._wanted())
        fires = "it makes the rule fire" if now.first is None else f"it is step {now.came} of {len(self.steps)}"
        return OperatorFinding(True, found, self._wanted(), fires)


def _names(steps: Node, problems: Problems | None) -> Node | None:
    """Return the steps as one mapping.

    None: they are no list of mappings with one name each.
    """
    items = steps.value if isinstance(steps.value, list) else []
    good = [item for item in items if isinstance(item.value, dict) and len(item.value) == 1]
    names = [name for item in good for name in item.value]
    if len(items) < LEAST_STEPS or len(good) < len(items) or len(set(names)) < len(names):
        if problems is not None:
            crowded = next((item for item in items if isinstance(item.value, dict) and len(item.value) > 1), None)
            what = "sequence.steps is a list of two or more steps, each with a name of its own and a pattern"
            if crowded is not None:
                what = f"a step of sequence.steps has one name, not {', '.join(map(repr, crowded.value))}"
            problems.add(crowded or steps, what, "steps: [{opened: shutter}, {armed: detector}]")
        return None
    found = Node({name: item.value[name] for item in good for name in item.value}, steps.line, steps.column)
    found.keys = {name: item.at_key(name) for item in good for name in item.value}
    return found
