"""What a rule with dedupe or batch has in mind now, in words."""

from __future__ import annotations

import time

from oncue.protocol.api import RuleInfo


def remembered(rule: RuleInfo) -> str:
    """ "2 open windows with 37 events, the next closes in 18 s at the latest; 5 not let pass": "" without any."""
    parts = []
    if rule.windows:
        text = f"{_many(rule.windows, 'open window')} with {_many(rule.waiting, 'event')}"
        if rule.closes_us:
            seconds = max(0, rule.closes_us // 1_000_000 - int(time.time()))
            text += f", the next closes in {seconds:,} s at the latest"
        parts.append(text)
    if rule.suppressed:
        parts.append(f"{rule.suppressed:,} not let pass since start")
    return "; ".join(parts)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
