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
    value, headers = cloudevents.to_record(event)
    question = Question(EXPLAIN, value, headers, disabled_because="" if state == "active" else why)
    if state == "paused":
        question = msgspec.structs.replace(question, disabled_because=f"the rule is paused: {entry.paused}")
    try:
        answer = await evaluator.ask(entry.rule, question)
    except OverBudget as e:
        known = question.disabled_because or "not known"
        return Explanation(rule=entry.rule.name, event=event.id, fires=False, why=f"{known}: its evaluation {e}")
    except Unanswered as e:
        return Explanation(rule=entry.rule.name, event=event.id, fires=False, why=f"not known: {e}")
    if answer.kind == FAILED:
        return Explanation(rule=entry.rule.name, event=event.id, fires=False, why=answer.reason)
    return _decode(answer.match)
