"""Timers: schedule Tick records.

A Tick is appended to a partition of `oncue.matches` when a window is due, or when its operator was
removed from the rule, or when the limiters of a rule with firings that wait may have changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from oncue.log.base import Log, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.protocol.topics import MATCHES
from oncue.rules.operators.records import RuleLimits, Tick

# partition -> (rule, operator_id) of removed operators
Retired = Mapping[int, Sequence[tuple[str, str]]]

# partition -> limiters in force of rules with firings that wait
Limits = Mapping[int, Sequence[RuleLimits]]


class Timers:
    """Appends at most one Tick per partition at a time.

    The next one waits until it is applied.
    """

    def __init__(self) -> None:
        self.rules_changed = asyncio.Event()  # windows of removed operators are to be closed
        self.due_ms: dict[int, int] = {}  # partition -> when its next window closes; 0: none does
        self._under_way: dict[int, int] = {}  # partition -> offset of the unapplied tick
        self._retired_waiting = False  # windows of removed operators wait for a tick to be applied

    def restart(self, due_ms: Mapping[int, int]) -> None:
        self.due_ms = dict(due_ms)
        self._under_way = {}

    def forget(self, parts: Iterable[int]) -> None:
        """Drop partitions that have another owner now."""
        for part in parts:
            self.due_ms.pop(part, None)
            self._under_way.pop(part, None)

    def next_due_s(self, now_ms: int) -> float | None:
        """Return the seconds until the next window is due; None: there is none."""
        due = [at for part, at in self.due_ms.items() if at and part not in self._under_way]
        return max(0.0, (min(due) - now_ms) / 1000) if due else None

    async def append(self, log: Log, now_ms: int, retired: Retired, limits: Limits) -> None:
        due = {part for part, at in self.due_ms.items() if 0 < at <= now_ms}
        for part in sorted(due | set(retired) | set(limits)):
            if part in self._under_way:
                self._retired_waiting |= part in retired or part in limits
                continue
            tick = Tick(VERSION, now_ms, tuple(sorted(retired.get(part, []))), tuple(limits.get(part, ())))
            record = Record(encode(tick))
            (position,) = await log.append(MATCHES, [record], part)
            self._under_way[part] = position.first

    def applied(self, part: int, following: int, due_ms: int) -> None:
        """Record that the partition is folded up to the offset `following`."""
        self.due_ms[part] = due_ms
        if self._under_way.get(part, following) < following:
            del self._under_way[part]
            if self._retired_waiting:
                self._retired_waiting = False
                self.rules_changed.set()
