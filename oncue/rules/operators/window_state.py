"""WindowState: the open windows of a key, as stretches of time with their events.

    tumbling, sliding   stretches of `step_ms`, aligned to the clock (UTC); a window is
                        `length_ms` of them
    sessions            a stretch from the first event of a session to its last

Times are those of the events: when they were accepted, or a value that they carry.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import msgspec

from oncue.rules.operators.base import Fire, FireSpan, OperatorState, Step
from oncue.rules.operators.batch import WINDOW_BYTES, WINDOW_EVENTS

MOST_STRETCHES = 1_000
KEPT_MS = 86_400_000  # for so long without an event, a key knows which windows have closed
NEVER = 1 << 62


class Stretch(NamedTuple):
    start: int
    last: int  # time of its newest event
    events: int
    nbytes: int
    opening: int  # offset of its first match
    opened_ms: int  # when that was accepted

    def joined(self, other: Stretch) -> Stretch:
        first = self if self.opening <= other.opening else other
        return Stretch(
            min(self.start, other.start),
            max(self.last, other.last),
            self.events + other.events,
            self.nbytes + other.nbytes,
            first.opening,
            first.opened_ms,
        )


class WindowState(OperatorState, tag="window", frozen=True):
    length_ms: int = 0  # of a window; of sessions the longest, 0: any
    step_ms: int = 0  # 0: sessions
    gap_ms: int = 0
    late_ms: int = 0
    by_event: bool = False
    stretches: tuple[Stretch, ...] = ()  # with events, in order of time
    until: int = 0  # windows that end by then have closed
    newest: int = 0  # time of the newest event
    accepted_ms: int = 0  # when the newest was accepted, with `shift_ms`
    shift_ms: int = 0  # clock of these windows, if it was ahead, minus the clock
    label: str = ""
    version: int = 0
    needs: tuple[str, ...] = ()

    def due_ms(self) -> int:
        if not self.stretches:
            return 0
        end = self.next_end()
        due = max(end, self.accepted_ms) + self.late_ms if self.by_event else end
        return max(1, due - self.shift_ms)

    def forget_ms(self) -> int:
        kept_ms = KEPT_MS + self.length_ms + self.gap_ms + self.late_ms
        return 0 if self.stretches else max(1, self.since_ms() + kept_ms)

    def buffered(self) -> int:
        return sum(stretch.events for stretch in self.stretches)

    def since_ms(self) -> int:
        return self.accepted_ms - self.shift_ms

    def moved(self, by_ms: int) -> Self:
        return msgspec.structs.replace(self, shift_ms=self.shift_ms - by_ms)

    def tick(self, at_ms: int, offset: int, reason: str) -> Step | None:
        if not self.stretches:
            return None
        changed = reason != "wait"
        mark = NEVER if changed else at_ms + self.shift_ms - self.late_ms
        state, fires = self.closed(mark, reason if changed else "end")
        return Step(msgspec.structs.replace(state, applied=offset), fires)

    # ------------------------------------------------------------ closing

    def next_end(self) -> int:
        """Return the end of the window that closes next."""
        first = self.stretches[0]
        if self.step_ms:
            return max(first.start, self.until) + self.step_ms
        end = first.last + self.gap_ms
        return min(end, first.start + self.length_ms) if self.length_ms else end

    def closed(self, mark: int, reason: str) -> tuple[WindowState, tuple[FireSpan, ...]]:
        """Close the windows that end by a time."""
        state, fires = self, list[FireSpan]()
        while state.stretches and (end := state.next_end()) <= mark:
            fires.append(state._fire(end, reason))
            kept = tuple(s for s in state.stretches if s.start >= fires[-1].keep_from)
            state = msgspec.structs.replace(state, stretches=kept, until=end)
        return state, tuple(fires)

    def closed_until(self, mark: int) -> int:
        """Return `until` once all windows that end by a time have closed."""
        return max(self.until, mark // self.step_ms * self.step_ms if self.step_ms else mark - self.gap_ms)

    def _fire(self, end: int, reason: str) -> FireSpan:
        start = end - self.length_ms if self.step_ms else self.stretches[0].start
        first = min((s for s in self.stretches if start <= s.start < end), key=lambda s: s.opening)
        fire = Fire(reason, first.opening, first.opened_ms, self.label, self.version, self.needs)
        return FireSpan(fire, start, end, start + self.step_ms if self.step_ms else end)

    def relieved(self, nbytes: int) -> tuple[WindowState, tuple[FireSpan, ...]]:
        """Fire windows early until another event of a size has room.

        Windows that overlap all fire, so that each of them has an event once.
        """
        if 0 < self.step_ms < self.length_ms and self._is_full(nbytes):
            emptied, early = self.closed(NEVER, "full")
            return msgspec.structs.replace(emptied, until=self.until), early
        state, fires = self, list[FireSpan]()
        while state._is_full(nbytes):
            fires.append(state._fire(state.next_end(), "full"))
            kept = tuple(s for s in state.stretches if s.start >= fires[-1].keep_from)
            state = msgspec.structs.replace(state, stretches=kept)
        return state, tuple(fires)

    def _is_full(self, nbytes: int) -> bool:
        if not self.stretches:
            return False
        events = 0
        for stretch in self.stretches:
            events += stretch.events
            nbytes += stretch.nbytes
        return nbytes > WINDOW_BYTES or events >= WINDOW_EVENTS or len(self.stretches) >= MOST_STRETCHES

    # ------------------------------------------------------------ events

    def is_late(self, time_ms: int) -> bool:
        """Return True if all windows of an event with this time have closed."""
        if self.step_ms:
            return time_ms // self.step_ms * self.step_ms + self.length_ms <= self.until
        return time_ms < self.until

    def with_event(self, time_ms: int, nbytes: int, offset: int, at_ms: int) -> tuple[Stretch, ...]:
        """Return the stretches with an event, which may join two sessions."""
        start = time_ms // self.step_ms * self.step_ms if self.step_ms else time_ms
        found, others = Stretch(start, time_ms, 1, nbytes, offset, at_ms), list[Stretch]()
        for stretch in self.stretches:
            if self._belongs(stretch, found):
                found = stretch.joined(found)
            else:
                others.append(stretch)
        return tuple(sorted((*others, found)))

    def _belongs(self, stretch: Stretch, event: Stretch) -> bool:
        if self.step_ms:
            return stretch.start == event.start
        near = stretch.start - self.gap_ms < event.last and event.start < stretch.last + self.gap_ms
        length = max(stretch.last, event.last) - min(stretch.start, event.start)
        return near and (not self.length_ms or length < self.length_ms)
