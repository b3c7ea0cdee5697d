"""order_by: passes the events of a key in the order of their numbers.

An event waits until all numbers before its own have come. After `within`, what has not come is
skipped, or those that wait for it become dead letters.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Self

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import encode
from oncue.protocol.records import Event
from oncue.quantities import duration_text
from oncue.rules.matching.fields import MISSING
from oncue.rules.matching.filters import as_text
from oncue.rules.operators.base import BufferAt, Fire, FireSpan, Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.batch import WINDOW_BYTES, stored_bytes
from oncue.rules.operators.options import MAX_DURATION_MS, about, duration, event_path, require, value_at
from oncue.rules.operators.records import DEAD, Match, Waited
from oncue.strict_yaml.document import Node, Problems, nearest

WAIT, SKIP = "wait", "skip"
BLOCKS = (WAIT, SKIP, DEAD)
MOST = 1_000  # events of a key that wait; then the gap is skipped
LARGEST = 2**53 - 1
GAPS = 100  # that a key remembers


class Waiting(NamedTuple):
    number: int
    fire: Fire
    nbytes: int = 0  # of the event and this


class OrderState(OperatorState, tag="order_by", frozen=True):
    """The next number of a key, and the events that wait for it, in order."""

    following: int = 0
    waiting: tuple[Waiting, ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()  # first and last number of each gap
    since: int = 0  # when the newest event came, or the wait for the next number began
    on_block: str = WAIT
    within_ms: int = 0

    def due_ms(self) -> int:
        return self.since + self.within_ms if self.waiting and self.on_block != WAIT else 0

    def forget_ms(self) -> int:
        return 0 if self.waiting else self.since + MAX_DURATION_MS

    def buffered(self) -> int:
        return len(self.waiting)

    def since_ms(self) -> int:
        return self.since

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, since=self.since + by_ms)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if not self.waiting:
            return None
        how = SKIP if reason == "changed" else self.on_block
        state, fires = self.unblocked(at_ms, how, all_gaps=reason == "changed")
        return Step(msgspec.structs.replace(state, applied=offset), fires)

    @property
    def missing(self) -> str:
        """Return in words which numbers the first event waits for."""
        return _numbers(self.following, self.waiting[0].number - 1)

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= MOST or sum(each.nbytes for each in self.waiting) > WINDOW_BYTES

    def has_skipped(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.skipped)

    def drained(self, at_ms: int) -> tuple[OrderState, tuple[FireSpan, ...]]:
        """Fire the events whose turn it is."""
        following, fires = self.following, list[FireSpan]()
        for number, fire, _ in self.waiting:
            if number != following:
                break
            fires.append(FireSpan(fire, number, number + 1, number + 1))
            following += 1
        if not fires:
            return self, ()
        left = self.waiting[len(fires) :]
        return msgspec.structs.replace(self, following=following, waiting=left, since=at_ms), tuple(fires)

    def unblocked(self, at_ms: int, how: str, all_gaps: bool = False) -> tuple[OrderState, tuple[FireSpan, ...]]:
        """Wait no longer for the missing numbers."""
        if how != DEAD and not all_gaps:
            gap = (self.following, self.waiting[0].number - 1)
            return self._after((gap,), self.waiting[0].number, self.waiting).drained(at_ms)
        numbers = [self.following - 1, *(each.number for each in self.waiting)]
        gaps = tuple((a + 1, b - 1) for a, b in pairwise(numbers) if b > a + 1)
        why = f"order_by: {self.missing} has not come within {duration_text(self.within_ms)}"
        waited = Waited(1, 1, DEAD, why) if how == DEAD else None
        fires = tuple(FireSpan(fire, n, n + 1, n + 1, waited) for n, fire, _ in self.waiting)
        return msgspec.structs.replace(self._after(gaps, numbers[-1] + 1, ()), since=at_ms), fires

    def _after(self, gaps: tuple[tuple[int, int], ...], following: int, waiting: tuple[Waiting, ...]) -> OrderState:
        skipped = (*self.skipped, *gaps)[-GAPS:]
        return msgspec.structs.replace(self, following=following, waiting=waiting, skipped=skipped)

    def without_gap(self, number: int) -> OrderState:
        """Note that a number has come after all."""
        gaps: list[tuple[int, int]] = []
        for first, last in self.skipped:
            inside = first <= number <= last
            parts = ((first, number - 1), (number + 1, last)) if inside else ((first, last),)
            gaps += [part for part in parts if part[0] <= part[1]]
        return msgspec.structs.replace(self, skipped=tuple(gaps[-GAPS:]))


class OrderOperator(Operator[OrderState], tag="order_by", frozen=True):
    by: str  # path of the number
    on_block: str = WAIT
    within_ms: int = 0
    start: int = -1  # -1: that of the first event

    STATE = OrderState
    OPTIONS = ("by", "from", "on_block", "within")
    EXAMPLE = '{key: "${data.run}", by: "${data.scan}"}'
    BUFFERS = True
    PLAIN = "by"
    KEEPS_STATES = True
    UNFIRED = "an event with a smaller number has not come"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if not require(node, "order_by", cls.EXAMPLE, ("by",), problems):
            return None
        by = event_path(node.value["by"], "order_by.by", "a number", problems)
        start, block = node.value.get("from"), node.value.get("on_block")
        if start is not None and (type(start.value) is not int or not 0 <= start.value <= LARGEST):
            problems.add(start, "order_by.from is a whole number from 0 on")
            start = None
        if block is not None and block.value not in BLOCKS:
            problems.add(block, f"order_by.on_block is {block.value!r}", nearest(str(block.value), BLOCKS))
        on_block = WAIT if block is None else str(block.value)
        within = node.value.get("within")
        if on_block != WAIT and within is None:
            problems.add(node, f"`order_by` with `on_block: {on_block}` needs the key 'within'", "within: 10m")
        if on_block == WAIT and within is not None:
            problems.add(within, "order_by.within is for `on_block: skip` and `on_block: dead`", "leave it out")
        within_ms = duration(within, "order_by.within", problems)
        return cls(key, by, on_block, within_ms, -1 if start is None else start.value)

    def measure(self, event: Event) -> int:
        """Return the number of an event. Raises Invalid."""
        found = value_at(self.by)(event)
        if type(found) is int and 0 <= found <= LARGEST:
            return found
        what = f"the event has no {self.by}" if found is MISSING else f"{self.by} is {as_text(found)[:60]!r}"
        raise Invalid(f"order_by.by: {what}", remedy="a whole number from 0 on")

    def step(self, state: OrderState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        number, fires = match.event.size_bytes, tuple[FireSpan, ...]()
        now = self._begun(state, match)
        repeated = bool(now.waiting) and known()
        if now.due_ms() and match.at_ms >= now.due_ms():
            now, fires = now.unblocked(now.due_ms(), now.on_block)
        now = msgspec.structs.replace(now, applied=offset, on_block=self.on_block, within_ms=self.within_ms)
        fire = Fire.of("order", match, offset)
        if now.has_skipped(number) and not repeated:
            why = f"order_by: {number:,} came after larger numbers, which had waited for it, have gone on"
            late = FireSpan(fire, number, number + 1, number + 1, Waited(1, 1, DEAD, why))
            return Step(now.without_gap(number), (*fires, BufferAt(number), late))
        if repeated or number < now.following or any(number == each.number for each in now.waiting):
            return Step(now, fires, suppressed=True)
        nbytes = stored_bytes(match.event) + len(encode(fire))
        waiting = tuple(sorted((*now.waiting, Waiting(number, fire, nbytes)), key=lambda each: each.number))
        since = now.since if now.waiting else match.at_ms
        now, more = msgspec.structs.replace(now, waiting=waiting, since=since).drained(match.at_ms)
        while now.is_full:
            now, early = now.unblocked(match.at_ms, SKIP)
            more += early
        return Step(now, (*fires, BufferAt(number), *more))

    def _begun(self, state: OrderState | None, match: Match) -> OrderState:
        if state is not None and (state.waiting or match.at_ms < state.forget_ms()):
            return state
        following = self.start if self.start >= 0 else match.event.size_bytes
        return OrderState(-1, following, on_block=self.on_block, within_ms=self.within_ms)

    def describe(self) -> str:
        return f"order_by {self.by}{self.by_key()}, {self._block()}"

    def _block(self) -> str:
        if self.on_block == WAIT:
            return "wait for numbers that have not come"
        how = "skip" if self.on_block == SKIP else "a dead letter of those behind"
        return f"{how} what has not come within {duration_text(self.within_ms)}"

    def preview(self, state: OrderState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        now, number = self._begun(state, match), match.event.size_bytes
        if known:
            found = f"it waits for {_numbers(now.following, number - 1)}, since {about(match.at_ms - now.since)}"
            return OperatorFinding(True, found, self._block(), found)
        if number < now.following:
            return OperatorFinding(False, f"{number:,} is over: the next is {now.following:,}", self._block())
        found = f"the next is {now.following:,}"
        text = (
            "it is its turn" if number == now.following else f"it would wait for {_numbers(now.following, number - 1)}"
        )
        return OperatorFinding(True, found, self._block(), text)


def _numbers(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
