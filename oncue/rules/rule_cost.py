"""RuleCost: upper bounds of the time that one rule takes for an event.

What certainly takes less than INLINE_S runs where the events are read. All else runs in an
evaluator, a process that can be killed (oncue/rules/evaluation/). The bounds are computed once, for
some sizes, when the rule sees its first event.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from oncue.rules.matching.conditions import Condition, Leaf
from oncue.rules.matching.expression import Cost
from oncue.rules.matching.filters import MAX_CHARS
from oncue.rules.matching.item_list import MOST_ITEMS
from oncue.rules.matching.template import Template
from oncue.rules.parsing.rule_file import Rule
from oncue.rules.parsing.rule_run import RuleRun

INLINE_S = 0.008
# Sizes for which bounds are computed, and the largest one counts that is within INLINE_S.
SIZES = tuple(1 << power for power in range(7, 22))
LEAF_S = 1e-6  # one condition
ITEM_S = 2e-7  # one value of the rule file that is compared with, or copied
REGEX_S = 4e-8  # one byte of a text against one instruction of a regular expression (google-re2, measured: 1.8e-8)
RENDER_S = 2e-8  # one byte of a value in the arguments
REFERENCE_S = 1e-6  # one ${...}
FILTER_S = 2e-7  # one byte of a path in a filter
TEXT_S = 2e-8  # one character of a text in a filter
ROW_S = 1e-6  # one event of a window, for each value
TASK_S = 1e-5  # one task of `for_each`


class RuleCost:
    """Sizes of events (bytes) up to which parts of a rule run inline.

    `conditions`: the tests of `on` and `match`. `all`: those, `when` and the arguments.
    """

    __slots__ = ("all", "conditions")

    def __init__(self, rule: Rule) -> None:
        self.conditions = _largest(lambda size: conditions_s(rule.conditions, size))
        when_s = rule.when.longest() if rule.when is not None else lambda event_bytes: 0.0
        self.all = min(self.conditions, _largest(lambda size: when_s(size) + rule_s(rule, size)))


def rule_s(rule: Rule, event_bytes: int) -> float:
    """Return the longest time for conditions and arguments, without `when`."""
    seconds = conditions_s(rule.conditions, event_bytes)
    if rule.operators is not None:
        operators = rule.operators
        seconds += conditions_s(operators.conditions, event_bytes) + arguments_s(operators.key_templates, event_bytes)
        return seconds + sum(_expressions_s(c, event_bytes) for c in (operators.needs.cost, operators.select_cost))
    return seconds + sum(_run_s(run, event_bytes) for run in rule.runs)


def _run_s(run: RuleRun, source_bytes: int) -> float:
    """Return the longest time for the arguments of a run's tasks."""
    task_s = arguments_s(run.templates, source_bytes)
    if run.for_each is None:
        return task_s
    made = MAX_CHARS if run.for_each.template.cost.filters else 0
    items = min(MOST_ITEMS, source_bytes + made + run.for_each.template.items)
    return arguments_s([run.for_each.template], source_bytes) + items * (task_s + TASK_S)


def conditions_s(conditions: Sequence[Condition], event_bytes: int) -> float:
    return sum(_condition_s(condition, event_bytes) for condition in conditions)


def _condition_s(condition: Condition, event_bytes: int) -> float:
    if not isinstance(condition, Leaf):
        return conditions_s(condition.members, event_bytes)
    return LEAF_S + ITEM_S * condition.items + REGEX_S * condition.program_size * event_bytes


def arguments_s(templates: Sequence[Template], event_bytes: int) -> float:
    """Return the longest time for the arguments of these templates."""
    return sum(_expressions_s(t.cost, event_bytes) + ITEM_S * t.items for t in templates)


def _expressions_s(cost: Cost, event_bytes: int) -> float:
    """Return the longest time for expressions.

    Filters may have made a text of MAX_CHARS.
    """
    of_references = cost.references * (REFERENCE_S + RENDER_S * event_bytes)
    of_filters = cost.filters * (REFERENCE_S + FILTER_S * event_bytes + TEXT_S * MAX_CHARS)
    return of_references + of_filters + cost.program_size * REGEX_S * (event_bytes + MAX_CHARS)


def window_s(runs: Sequence[RuleRun], events: int, window_bytes: int) -> float:
    """Return the longest time for the arguments of a window of so many events."""
    references = 1 + sum(t.cost.references for run in runs for t in run.templates)
    return sum(_run_s(run, window_bytes) for run in runs) + ROW_S * events * references


def _largest(seconds: Callable[[int], float]) -> int:
    """Return the largest of SIZES whose time is within INLINE_S; 0: none."""
    within = bisect_right(SIZES, INLINE_S, key=seconds)
    return SIZES[within - 1] if within else 0
