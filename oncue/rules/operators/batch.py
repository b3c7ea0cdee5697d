"""batch: buffers the events of a key, and fires for all of them together.

The window closes with `count` events, with `bytes` of data.size, or when `wait` has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import encode
from oncue.protocol.records import Event
from oncue.quantities import duration_text, size_bytes, size_text
from oncue.rules.matching.fields import getter
from oncue.rules.operators.base import BUFFER, Effect, Fire, Operator, OperatorFinding, OperatorState, Step
from oncue.rules.operators.options import about, duration, positive, whole_number
from oncue.rules.operators.records import BufferedEvent, Match
from oncue.strict_yaml.document import Node, Problems

WINDOW_EVENTS = 10_000  # a window with so many events, or so many bytes, closes early
WINDOW_BYTES = 1_000_000  # so that a window fits into one record (a dead letter)
_size = getter("data.size")


class BatchState(OperatorState, tag="batch", frozen=True):
    """The open window of a key; with a count of 0 there is none."""

    closed_ms: int = 0
    count: int = 0
    size_bytes: int = 0
    buffered_bytes: int = 0
    opening: int = 0
    opened_ms: int = 0
    closes_ms: int = 0  # 0: not by time
    label: str = ""
    version: int = 0
    needs: tuple[str, ...] = ()

    def due_ms(self) -> int:
        return self.closes_ms if self.count else 0

    def forget_ms(self) -> int:
        return 0 if self.count else self.closed_ms or 1

    def buffered(self) -> int:
        return self.count

    def since_ms(self) -> int:
        return self.opened_ms if self.count else self.closed_ms

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(
            self,
            closed_ms=self.closed_ms and self.closed_ms + by_ms,
            opened_ms=self.opened_ms and self.opened_ms + by_ms,
            closes_ms=self.closes_ms and self.closes_ms + by_ms,
        )

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        return Step(BatchState(offset, at_ms), (self.fire(reason),)) if self.count else None

    def fire(self, reason: str) -> Fire:
        return Fire(reason, self.opening, self.opened_ms, self.label, self.version, self.needs)


class BatchOperator(Operator[BatchState], tag="batch", frozen=True):
    count: int = 0  # 0: any number
    size_bytes: int = 0  # 0: any size
    wait_ms: int = 0  # 0: no limit

    STATE = BatchState
    OPTIONS = ("count", "bytes", "wait")
    EXAMPLE = "{count: 100, wait: 30s}"
    BUFFERS = True
    FIRES_MANY = True
    SUPPRESSES = False
    UNFIRED = "its window is open still, and has no `wait` to close it"

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        if not any(option in node.value for option in cls.OPTIONS):
            problems.add(node, "`batch` needs at least one of `count`, `bytes` and `wait`", f"batch: {cls.EXAMPLE}")
        count, nbytes, wait = (node.value.get(option) for option in cls.OPTIONS)
        return cls(
            key,
            whole_number(count, "batch.count", WINDOW_EVENTS, problems),
            positive(nbytes, "batch.bytes", size_bytes, problems),
            duration(wait, "batch.wait", problems),
        )

    def measure(self, event: Event) -> int:
        """Return data.size where the sum of it is limited. Raises Invalid."""
        if not self.size_bytes:
            return 0
        size = _size(event)
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1 << 62:
            raise Invalid(
                "batch.bytes: the event has no data.size that is a number of bytes", remedy="use `count` or `wait`"
            )
        return int(size)

    def step(self, state: BatchState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        now = state or BatchState(-1)
        effects: tuple[Effect, ...] = ()
        if now.count and now.closes_ms and match.at_ms >= now.closes_ms:
            effects, now = (now.fire("wait"),), BatchState(offset)
        elif now.count and known():
            return Step(msgspec.structs.replace(now, applied=offset))
        nbytes = stored_bytes(match.event)
        if now.count and now.buffered_bytes + nbytes > WINDOW_BYTES:
            effects, now = (*effects, now.fire("full")), BatchState(offset)
        if not now.count:
            closes_ms = match.at_ms + self.wait_ms if self.wait_ms else 0
            now = BatchState(offset, opening=offset, opened_ms=match.at_ms, closes_ms=closes_ms, needs=match.needs)
        now = msgspec.structs.replace(
            now,
            applied=offset,
            count=now.count + 1,
            size_bytes=now.size_bytes + match.event.size_bytes,
            buffered_bytes=now.buffered_bytes + nbytes,
            label=match.label,
            version=match.version,
        )
        effects = (*effects, BUFFER)
        if reason := self._limit_reached(now):
            return Step(BatchState(offset, match.at_ms), (*effects, now.fire(reason)))
        return Step(now, effects)

    def _limit_reached(self, state: BatchState) -> str:
        if self.count and state.count >= self.count:
            return "count"
        if self.size_bytes and state.size_bytes >= self.size_bytes:
            return "bytes"
        return "full" if state.count >= WINDOW_EVENTS else ""

    def describe(self) -> str:
        return f"batch{self.by_key()} of {self._limits()}"

    def _limits(self) -> str:
        parts = [f"{self.count:,} events"] if self.count else []
        parts += [size_text(self.size_bytes)] if self.size_bytes else []
        parts += [duration_text(self.wait_ms)] if self.wait_ms else []
        return " or ".join(parts)

    def preview(self, state: BatchState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        found = self._window(state, match.at_ms)
        return OperatorFinding(True, found, self._limits(), f"it {'is in' if known else 'goes into'} a batch: {found}")

    def _window(self, state: BatchState | None, now_ms: int) -> str:
        if state is None or not state.count:
            return "no window is open: it would open one"
        parts = [f"{state.count:,} of {self.count:,} events" if self.count else f"{state.count:,} events"]
        if self.size_bytes:
            parts.append(f"{size_text(state.size_bytes)} of {size_text(self.size_bytes)}")
        text = " and ".join(parts) + " in the open window"
        return f"{text}, closes in {about(state.closes_ms - now_ms)} at the latest" if state.closes_ms else text


def stored_bytes(event: BufferedEvent) -> int:
    """Return the size of a stored event, with the largest offset."""
    return len(encode(event)) + 8
