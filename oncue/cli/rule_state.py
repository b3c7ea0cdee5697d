"""State of a rule in words: open windows, unevaluated conditions, warnings."""

from __future__ import annotations

import time
from collections.abc import Sequence

from oncue.cli.output import number_of, say
from oncue.protocol.api import RuleInfo, RuleWarning
from oncue.quantities import duration_text, size_text


def state_text(rule: RuleInfo) -> str:
    """Return open windows and dropped events in words; "" if there are none.

    "2 open windows with 37 events, the next closes in 18 s at the latest; 5 dropped since start".
    """
    parts = []
    if rule.windows:
        text = f"{number_of(rule.windows, 'open window')} with {number_of(rule.waiting, 'event')}"
        if rule.closes_us:
            seconds = max(0, rule.closes_us // 1_000_000 - int(time.time()))
            text += f", the next closes in {seconds:,} s at the latest"
        parts.append(text)
    if rule.suppressed:
        parts.append(f"{rule.suppressed:,} dropped since start")
    if rule.shadow:
        parts.append(f"{number_of(rule.shadow, 'firing')} since start would have run, without `mode: shadow`")
    if rule.empty:
        parts.append(
            f"{number_of(rule.empty, 'firing')} without a task since start, as the list of `for_each` was empty"
        )
    return "; ".join(parts)


def unevaluated_text(rule: RuleInfo) -> str:
    """Return how often and why `when` could not be evaluated; "" if it always could."""
    if not rule.unevaluated_why:
        return ""
    last = f"event {rule.unevaluated_event} of {rule.unevaluated_source}"
    return (
        f"for {number_of(rule.unevaluated, 'event')} since start, `when` could not be evaluated;"
        f" the last, {last}: {rule.unevaluated_why}"
    )


def used_text(rule: RuleInfo) -> str:
    """Return what the rule's tasks have used within a time; "" for nothing."""
    if not rule.node_hours_period_s:
        return ""
    limit = f" of {rule.node_hours_limit:g}" if rule.node_hours_limit else ""
    text = f"{rule.node_hours:.4g}{limit} node-hours in {duration_text(rule.node_hours_period_s * 1000)}"
    text += f", {rule.cpu_hours:.4g} CPU-hours, by {number_of(rule.attempts, 'attempt')}"
    return text + (f"; the largest task had {size_text(rule.peak_bytes)}" if rule.peak_bytes else "")


def show_warnings(file: str, warnings: Sequence[RuleWarning]) -> None:
    """Print what is valid in a rule file, and probably a mistake."""
    from oncue.cli.deploying.python_rules import line_of

    for w in warnings:
        remedy = f" ({w.remedy})" if w.remedy else ""
        say(f"{file}:{line_of(file, w.line)}:{w.column}: warning: {w.rule}: {w.message}{remedy}", err=True)
