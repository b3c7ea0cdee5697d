"""sample: passes the `first` events of a key, one in `every` N, or of a series.

Of a series whose length its events tell (`of`), it passes the `last`, or `select` of them, evenly
spaced, while the series grows. A key begins anew when no event came for `ttl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.quantities import duration_text
from oncue.rules.matching.fields import MISSING
from oncue.rules.matching.filters import as_text
from oncue.rules.operators.base import Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import duration, event_path, value_at, whole_number
from oncue.rules.operators.records import Match
from oncue.strict_yaml.document import Node, Problems

MOST = 1_000_000_000
TTL_MS = 86_400_000  # without `ttl`


class SampleState(OperatorState, tag="sample", frozen=True):
    """Events of a key so far."""

    newest_ms: int
    until: int  # it begins anew then, if no event comes
    seen: int

    def forget_ms(self) -> int:
        return self.until

    def since_ms(self) -> int:
        return self.newest_ms

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, newest_ms=self.newest_ms + by_ms, until=self.until + by_ms)


class SampleOperator(Operator[SampleState], tag="sample", frozen=True):
    first: int = 0  # 0: not limited
    every: int = 1
    ttl_ms: int = TTL_MS
    last: bool = False
    select: int = 0  # so many of `of`, evenly spaced
    of: str = ""  # path of the number of events of a series
    number: int = 0  # of events of each series, if it is not in the events

    STATE = SampleState
    OPTIONS = ("first", "every", "ttl", "last", "select", "of")
    EXAMPLE = '{key: "${data.scan}", every: 10}'
    FORMER = 4

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        get = node.value.get
        modes = [name for name in ("last", "select") if name in node.value]
        counts = [name for name in ("first", "every") if name in node.value]
        if len(modes) + bool(counts) != 1:
            problem = "`sample` needs `first` or `every`, or both; or `last`, or `select`"
            problems.add(node, problem, f"sample: {cls.EXAMPLE}")
            return None
        first = whole_number(get("first"), "sample.first", MOST, problems)
        every = whole_number(get("every"), "sample.every", MOST, problems) or 1
        ttl_ms = duration(get("ttl"), "sample.ttl", problems) or TTL_MS
        if counts and "of" in node.value:
            problems.add(node.at_key("of"), "sample.of is for `last` and `select`", "leave it out")
        if counts:
            return cls(key, first, every, ttl_ms)
        if "of" not in node.value:
            remedy = 'the number of events of the series: of: "${data.frames}"'
            problems.add(node, f"`sample` with `{modes[0]}` needs the key 'of'", remedy)
            return None
        if "last" in node.value and node.value["last"].value is not True:
            problems.add(node.value["last"], "sample.last is true, or left out")
        select = whole_number(get("select"), "sample.select", MOST, problems)
        of = node.value["of"]
        number = whole_number(of, "sample.of", MOST, problems) if isinstance(of.value, int) else 0
        path = "" if isinstance(of.value, int) else event_path(of, "sample.of", "a number of events", problems)
        return cls(key, 0, 1, ttl_ms, "last" in node.value, select, path, number)

    @property
    def of_series(self) -> bool:
        return self.last or self.select > 0

    def measures(self) -> bool:
        return self.of_series

    def measure(self, event: Event) -> int:
        """Return the number of events of the series. Raises Invalid."""
        if not self.of:
            return self.number
        found = value_at(self.of)(event)
        if type(found) is int and 0 < found <= MOST:
            return found
        what = f"the event has no {self.of}" if found is MISSING else f"{self.of} is {as_text(found)[:60]!r}"
        raise Invalid(f"sample.of: {what}", remedy=f"a whole number from 1 to {MOST:,}")

    def step(self, state: SampleState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        seen = self._seen(state, match.at_ms)
        now = SampleState(offset, match.at_ms, match.at_ms + self.ttl_ms, seen + 1)
        passes = self._passes(seen, match.event.size_bytes)
        return Step(now, passes=passes, suppressed=not passes)

    def _seen(self, state: SampleState | None, at_ms: int) -> int:
        return state.seen if state is not None and at_ms < state.until else 0

    def _passes(self, seen: int, length: int) -> bool:
        """Return True if the event after `seen` others is taken. `length`: of the series."""
        if self.last:
            return seen + 1 == length
        if self.select:
            # The first of each of so many equal parts.
            return seen < length and (seen == 0 or seen * self.select // length > (seen - 1) * self.select // length)
        return seen % self.every == 0 and (not self.first or seen // self.every < self.first)

    def describe(self) -> str:
        return f"sample{self.by_key()} of {self._taken()}"

    def _taken(self) -> str:
        if self.of_series:
            what = "the last" if self.last else f"{self.select:,} evenly spaced"
            return f"{what} of {self.of or f'{self.number:,}'}"
        parts = [f"the first {self.first:,}"] if self.first else []
        parts += [f"one in {self.every:,}"] if self.every > 1 or not self.first else []
        return " of ".join(parts)

    def preview(self, state: SampleState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        seen, length = self._seen(state, match.at_ms), match.event.size_bytes
        of = f" of {length:,}" if self.of_series else ""
        kept = f"; begins anew after {duration_text(self.ttl_ms)} without one" if seen else ""
        found = f"it is number {seen + 1:,}{of} of its key{kept}"
        return OperatorFinding(self._passes(seen, length), found, self._taken())
