"""Explains a rule for an event in an evaluator, because that may take long."""

from __future__ import annotations

import msgspec

from oncue.protocol import cloudevents
from oncue.protocol.api import Explanation
from oncue.protocol.records import Event
from oncue.rules.active_rules import ActiveRule
from oncue.rules.evaluation.evaluator import Evaluator, OverBudget, Unanswered
from oncue.rules.evaluation.messages import EXPLAIN, FAILED, Question

_decode = msgspec.json.Decoder(Explanation).decode


async def explain_apart(evaluator: Evaluator, entry: ActiveRule, event: Event) -> Explanation:
    """Explain each step of the rule for the event.

    If that takes too long, the explanation says so. Raises EvaluatorBusy.
    """
    state, why = entry.state
    because = f"the rule is paused: {entry.paused}" if state == "paused" else why
    value, headers = cloudevents.to_record(event)
    try:
        answer = await evaluator.ask(entry.rule, Question(EXPLAIN, value, headers, disabled_because=because))
    except OverBudget as e:
        unknown = f"{because or 'not known'}: its evaluation {e}"
    except Unanswered as e:
        unknown = f"not known: {e}"
    else:
        if answer.kind != FAILED:
            return _decode(answer.match)
        unknown = answer.reason
    return Explanation(rule=entry.rule.name, event=event.id, fires=False, why=unknown)
