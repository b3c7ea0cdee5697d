"""Preview of a rule's operators for one event, in words.

Used by `oncue rules explain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from oncue.protocol.api import ExplainStep
from oncue.rules.limiters.base import LimiterState
from oncue.rules.operators.base import OperatorState
from oncue.rules.operators.chain import OperatorChain
from oncue.rules.operators.records import Match


class OperatorPreview(NamedTuple):
    passes: bool  # no operator suppresses the event
    why: str
    steps: tuple[ExplainStep, ...]
    buffered: bool = False  # an operator or a limit holds the event, or may do so


def preview(chain: OperatorChain, match: Match, states: Sequence[tuple[OperatorState | None, bool]]) -> OperatorPreview:
    """Return the preview of a match.

    `states`: of each operator its state, and whether its buffer has the event; then of the limiters
    (limits.py), as `all_state_keys` names them.
    """
    steps: list[ExplainStep] = []
    why = ""
    of_limiters = states[len(chain.operators) + 1 :]
    buffered = any(known for _, known in states) or _may_wait(chain, of_limiters)
    for compiled, stage, (state, known) in zip(chain.operators, match.stages, states, strict=False):
        name = compiled.operator.describe()
        finding = compiled.operator.preview(state, match, stage.key, known)
        steps.append(ExplainStep(condition=name, holds=finding.passes, found=finding.found, wanted=finding.wanted))
        if not finding.passes:
            return OperatorPreview(False, f"{name}: {finding.found}", tuple(steps), buffered)
        why = finding.why or why
    keys = match.event.limit_keys or {}
    for each, (state, known) in zip(chain.limiters, of_limiters, strict=True):
        limiter, name = each.limiter, each.limiter.describe()
        finding = limiter.preview(state, keys.get(limiter.name(), ""), match.at_ms)
        if known:
            finding = finding._replace(why=f"it waits already: {finding.found}")
        steps.append(ExplainStep(condition=name, holds=finding.passes, found=finding.found, wanted=finding.wanted))
        if not finding.passes:
            return OperatorPreview(False, f"{name}: {finding.found}", tuple(steps), buffered)
        why = "; ".join(filter(None, (why, finding.why)))
    return OperatorPreview(True, why, tuple(steps), buffered)


def _may_wait(chain: OperatorChain, of_limiters: Sequence[tuple[OperatorState | None, bool]]) -> bool:
    """Return True if a firing that waits may have the event.

    Of a firing of several events, the queue does not know each.
    """
    many = chain.last is not None and chain.last.FIRES_MANY
    return many and any(isinstance(state, LimiterState) and state.queued > 0 for state, _ in of_limiters)
