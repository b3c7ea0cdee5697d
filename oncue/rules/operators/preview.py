"""What the operators of a rule would do with an event now, in words: for `oncue rules explain`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from oncue.protocol.api import ExplainStep
from oncue.quantities import duration_text, size_text
from oncue.rules.operators.chain import OperatorChain, limits
from oncue.rules.operators.records import BatchSpec, Match
from oncue.rules.stateful.fold import BatchState, DedupeState, State


class OperatorPreview(NamedTuple):
    passes: bool  # no double
    why: str
    steps: tuple[ExplainStep, ...]


def outlook(memory: OperatorChain, match: Match, found: Sequence[tuple[State | None, bool]]) -> OperatorPreview:
    """`found`: the state of each operator, and whether its window has the event already."""
    steps: list[ExplainStep] = []
    why = ""
    for operator, stage, (state, known) in zip(memory.operators, match.stages, found, strict=True):
        spec, name = operator.spec, operator.text()
        if isinstance(spec, BatchSpec):
            state = state if isinstance(state, BatchState) else None
            text = batch_text(spec, state, match.at_ms)
            why = f"it {'is in' if known else 'goes into'} a batch: {text}"
            steps.append(ExplainStep(condition=name, holds=True, found=text, wanted=limits(spec)))
            continue
        state = state if isinstance(state, DedupeState) else None
        wanted = f"no other within {duration_text(spec.ttl_ms)}"
        key = f"the key {stage.key}"
        if state is None or match.at_ms >= state.until_ms:
            steps.append(ExplainStep(condition=name, holds=True, found=f"{key} has not fired", wanted=wanted))
            continue
        text = f"{key} fired {about(match.at_ms - state.fired_ms)} ago, ttl {duration_text(spec.ttl_ms)}"
        if state.suppressed:
            text += f", {state.suppressed:,} not let pass since"
        steps.append(ExplainStep(condition=name, holds=False, found=text, wanted=wanted))
        return OperatorPreview(False, f"{name}: {text}", tuple(steps))
    return OperatorPreview(True, why, tuple(steps))


def batch_text(spec: BatchSpec, state: BatchState | None, now_ms: int) -> str:
    if state is None or not state.count:
        return "no window is open: it would open one"
    parts = [f"{state.count:,} of {spec.count:,} events" if spec.count else f"{state.count:,} events"]
    if spec.size_bytes:
        parts.append(f"{size_text(state.size_bytes)} of {size_text(spec.size_bytes)}")
    text = " and ".join(parts) + " in the open window"
    return f"{text}, closes in {about(state.due_ms - now_ms)} at the latest" if state.due_ms else text


def about(ms: int) -> str:
    """For people: 18 s, 3 min, 2 h, 5 d."""
    seconds = max(ms, 0) / 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
