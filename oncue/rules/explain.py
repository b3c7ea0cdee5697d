"""`decide` whether a rule fires for an event, and `explain` why.

The engine, the tests of rule files and the explanations all call `decide`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from oncue.errors import Invalid
from oncue.protocol.api import ExplainStep, Explanation
from oncue.protocol.records import Event
from oncue.rules.parsing.rule_file import Rule
from oncue.rules.parsing.rule_run import task_sources
from oncue.rules.text_forms import near_miss

EMPTY_LIST = "the list of `for_each` is empty"


class NotFired(msgspec.Struct, frozen=True):
    """The first step that failed.

    `step`: its index among the conditions; for `when`, the number of conditions.
    `reason`: why `when` could not be evaluated; "": a condition is false.
    """

    step: int
    reason: str = ""


def decide(rule: Rule, event: Event) -> NotFired | None:
    """Return the first failed step; None: the rule fires.

    A condition that cannot be tested fails.
    """
    for number, condition in enumerate(rule.conditions):
        if not condition.test(event):
            return NotFired(number)
    if rule.when is not None:
        answer = rule.when.test(event)
        if answer is not True:
            return NotFired(len(rule.conditions), answer if isinstance(answer, str) else "")
    return None


def explain(rule: Rule, event: Event, *, disabled_because: str = "") -> Explanation:
    """Explain each step in the order of the tests, up to the first that failed.

    `disabled_because`: why the rule is disabled; "": it is not.
    """
    failed = decide(rule, event)
    last = failed.step if failed else len(rule.conditions)
    steps = [
        _step(c.describe(), True, c.found(event), c.wanted)
        if failed is None or n != failed.step
        else _failed_step(c.describe(), c.found(event), c.wanted, event, c.test)
        for n, c in enumerate(rule.conditions[: last + 1])
    ]
    if rule.when is not None and last == len(rule.conditions):
        found = "true" if failed is None else failed.reason or "false"
        condition, when = f"when {rule.when.text}", rule.when
        if found == "false":
            steps.append(_failed_step(condition, found, "true", event, lambda other: when.test(other) is True))
        else:
            steps.append(_step(condition, failed is None, found, "true"))
    args, trouble = (None, "") if failed else rendered(rule, event)
    if failed is None and not trouble and rule.has_items and args == []:
        trouble = f"all conditions hold, and it makes no task: {EMPTY_LIST}"
    fires = failed is None and not disabled_because and not trouble
    why = disabled_because or trouble or _why(steps, failed)
    if fires and rule.operators is not None:
        why = f"{why}; then {rule.operators.describe()}"
    if fires and rule.mode == "shadow":
        why = f"{why}; it is counted and runs nothing: the rule has `mode: shadow`"
    return Explanation(rule=rule.name, event=event.id, fires=fires, why=why, steps=steps, args=args)


def _step(condition: str, holds: bool, found: str, wanted: str) -> ExplainStep:
    return ExplainStep(condition=condition, holds=holds, found=found, wanted=wanted)


def _failed_step(condition: str, found: str, wanted: str, event: Event, holds: Callable[[Event], bool]) -> ExplainStep:
    """Return a step that failed, and say so if only the form of a text is in the way."""
    hint = near_miss(event, holds, found)
    return _step(condition, False, f"{found} ({hint})" if hint else found, wanted)


def rendered(rule: Rule, event: Event) -> tuple[Any, str]:
    """Return the arguments of the task (a list for several), or the error.

    None: an operator waits for the event, and it takes part in no firing.
    """
    try:
        if rule.operators is not None and not rule.operators.takes(event):
            return None, ""
        return task_arguments(rule, event if rule.operators is None else rule.operators.rows(event)), ""
    except Invalid as e:
        return None, e.message


def task_arguments(rule: Rule, source: Any) -> Any:
    """Return the arguments of the task.

    A list for several runs and for `for_each`, which may be empty. Raises Invalid.
    """
    args = [rule.runs[index].render(each) for index, each in task_sources(rule.runs, source)]
    return args[0] if len(rule.runs) == 1 and not rule.has_items else args


def _why(steps: list[ExplainStep], failed: NotFired | None) -> str:
    if failed is None:
        return "all conditions hold"
    step = steps[-1]
    return f"{step.condition}: found {step.found}, wanted {step.wanted}"
