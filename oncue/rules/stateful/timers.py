"""When the time has to be told to a partition of `oncue.matches`: a window is due, or its operator is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from oncue.log.base import Log, Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.protocol.topics import MATCHES
from oncue.rules.operators.records import Tick

Retired = Mapping[int, Sequence[tuple[str, str]]]  # partition -> (rule, spec) that no rule has any more


class Timers:
    """One tick is under way in a partition at a time: the next waits until it is applied."""

    def __init__(self) -> None:
        self.rules_changed = asyncio.Event()  # the rules have changed: windows of operators that are gone close
        self.due_ms: dict[int, int] = {}  # partition -> when the next of its windows closes; 0: none does by time
        self._under_way: dict[int, int] = {}  # partition -> offset of a tick that was not applied yet
        self._retired_waiting = False  # it: windows of changed rules wait for one

    def restart(self, due_ms: Mapping[int, int]) -> None:
        self.due_ms = dict(due_ms)
        self._under_way = {}

    def forget(self, parts: Iterable[int]) -> None:
        """Others have them by now."""
        for part in parts:
            self.due_ms.pop(part, None)
            self._under_way.pop(part, None)

    def next_due_s(self, now_ms: int) -> float | None:
        """Until the next window is due; for ever where none is."""
        due = [at for part, at in self.due_ms.items() if at and part not in self._under_way]
        return max(0.0, (min(due) - now_ms) / 1000) if due else None

    async def append(self, log: Log, now_ms: int, retired: Retired) -> None:
        due = {part for part, at in self.due_ms.items() if 0 < at <= now_ms}
        for part in sorted(due | set(retired)):
            if part in self._under_way:
                self._retired_waiting |= part in retired
                continue
            record = Record(encode(Tick(VERSION, now_ms, tuple(sorted(retired.get(part, []))))))
            (position,) = await log.append(MATCHES, [record], part)
            self._under_way[part] = position.first

    def applied(self, part: int, following: int, due_ms: int) -> None:
        """The partition is folded so far."""
        self.due_ms[part] = due_ms
        if self._under_way.get(part, following) < following:
            del self._under_way[part]
            if self._retired_waiting:
                self._retired_waiting = False
                self.rules_changed.set()
