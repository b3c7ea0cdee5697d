"""window: fires for the events of each stretch of time, together.

Windows are tumbling (one after the other), sliding (they overlap) or sessions (from one pause to
the next). With `time`, the events' own time counts: windows wait for events that are `late`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import msgspec

from oncue.errors import Invalid
from oncue.protocol.records import Event
from oncue.quantities import duration_text
from oncue.rules.matching.conditions import parse_time
from oncue.rules.matching.fields import MISSING
from oncue.rules.matching.filters import as_text
from oncue.rules.operators.base import BufferAt, Operator, OperatorFinding, Step
from oncue.rules.operators.batch import stored_bytes
from oncue.rules.operators.options import about, duration, event_path, utc_text, value_at
from oncue.rules.operators.records import Match
from oncue.rules.operators.window_state import MOST_STRETCHES, WindowState
from oncue.strict_yaml.document import Node, Problems

ACCEPTED = "accepted"
KINDS = ("tumbling", "sliding", "session")
MOST_STEPS = 100  # of a sliding window
# Numbers from these on are milliseconds, microseconds and nanoseconds since 1970, not seconds.
UNITS = ((10**17, 10**6), (10**14, 10**3), (10**11, 1))  # with what a millisecond has of them


class WindowOperator(Operator[WindowState], tag="window", frozen=True):
    kind: str
    length_ms: int  # of a window; of sessions the longest, 0: any
    step_ms: int = 0  # 0: sessions
    gap_ms: int = 0
    late_ms: int = 0
    time: str = ""  # path of the events' time; "": when they were accepted

    STATE = WindowState
    OPTIONS = ("tumbling", "sliding", "every", "session", "size", "time", "late")
    EXAMPLE = '{key: "${data.detector}", tumbling: 1m}'
    BUFFERS = True
    FIRES_MANY = True

    @classmethod
    def parse(cls, node: Node, key: str, problems: Problems) -> Self | None:
        kinds = [kind for kind in KINDS if kind in node.value]
        if len(kinds) != 1:
            problems.add(node, "`window` needs one of `tumbling`, `sliding` and `session`", f"window: {cls.EXAMPLE}")
            return None
        kind = kinds[0]
        for option, of in (("every", "sliding"), ("size", "session")):
            if option in node.value and kind != of:
                problems.add(node.at_key(option), f"window.{option} is for `{of}`", "leave it out")
        length, every, size, late = (
            duration(node.value.get(option), f"window.{option}", problems) for option in (kind, "every", "size", "late")
        )
        time = _time_path(node, problems)
        if kind == "session":
            found = cls(key, kind, size, 0, length, late, time)
        else:
            found = cls(key, kind, length, every or length, 0, late, time)
        found._check(node, problems)
        return found

    def _check(self, node: Node, problems: Problems) -> None:
        if self.kind == "sliding":
            if "every" not in node.value:
                problems.add(node, "`window` lacks the key 'every'", "window: {sliding: 10m, every: 1m}")
            elif self.step_ms and (self.length_ms % self.step_ms or self.length_ms // self.step_ms > MOST_STEPS):
                problem = (
                    f"window.sliding is {duration_text(self.length_ms)}, which is not 1 to {MOST_STEPS} times `every`"
                )
                problems.add(node.value["sliding"], problem)
        if self.kind == "session" and self.length_ms and self.length_ms <= self.gap_ms:
            problems.add(node.value["size"], "window.size is not longer than window.session", "a session has pauses")
        if self.time and "late" not in node.value:
            remedy = "how long a window waits for events that arrive late: late: 30s"
            problems.add(node, "`window` with `time` needs the key 'late'", remedy)
        if "late" in node.value and not self.time:
            problems.add(node.at_key("late"), "window.late is for windows by `time`", "no event is late by the clock")
        if self.step_ms and (self.length_ms + self.late_ms) // self.step_ms >= MOST_STRETCHES:
            problem = f"more than {MOST_STRETCHES:,} windows would be open at a time"
            problems.add(node.value.get("late", node), problem, "shorten `late`, or take longer windows")

    def measure(self, event: Event) -> int:
        """Return the event's time in milliseconds. Raises Invalid."""
        return _time_ms(value_at(self.time)(event), self.time) if self.time else 0

    def by_event_time(self) -> bool:
        return bool(self.time)

    def step(self, state: WindowState | None, match: Match, offset: int, known: Callable[[], bool]) -> Step:
        now = self._begun(state, match.at_ms)
        at_ms, before = match.at_ms + now.shift_ms, len(now.stretches)
        time_ms = self._time_of(now, match, at_ms)
        newest = max(now.newest, time_ms)
        now, fires = now.closed(newest - self.late_ms, "end")
        until = now.closed_until(newest - self.late_ms)
        now = msgspec.structs.replace(now, applied=offset, until=until, newest=newest, accepted_ms=at_ms)
        if now.is_late(time_ms):
            return Step(now, fires, suppressed=True)
        # Without overlaps, nothing is left of the windows that close here.
        if before and (self.time or self.kind == "sliding" or not fires) and known():
            return Step(now, fires)
        nbytes = stored_bytes(match.event)
        now, early = now.relieved(nbytes)
        stretches = now.with_event(time_ms, nbytes, offset, match.at_ms)
        now = msgspec.structs.replace(
            now, stretches=stretches, label=match.label, version=match.version, needs=match.needs
        )
        return Step(now, (*fires, *early, BufferAt(time_ms)))

    def _begun(self, state: WindowState | None, at_ms: int) -> WindowState:
        """Return the state before an event.

        Without events in it, it goes by the clock again.
        """
        new = WindowState(-1, self.length_ms, self.step_ms, self.gap_ms, self.late_ms, bool(self.time))
        if state is None or (not state.stretches and at_ms >= state.forget_ms()):
            return new
        if state.stretches or not state.shift_ms:
            return state
        return msgspec.structs.replace(state, shift_ms=0) if self.time else new

    def _time_of(self, state: WindowState, match: Match, at_ms: int) -> int:
        """Return the time that counts.

        None is in the future, and the clock does not go back.
        """
        if self.time:
            return min(match.event.size_bytes, at_ms)
        return max(at_ms, state.newest, state.until)

    def describe(self) -> str:
        return f"window{self.by_key()}: {self._windows()}"

    def _windows(self) -> str:
        parts = {
            "tumbling": f"tumbling, {duration_text(self.length_ms)}",
            "sliding": f"sliding, {duration_text(self.length_ms)} every {duration_text(self.step_ms)}",
            "session": f"sessions until a pause of {duration_text(self.gap_ms)}",
        }[self.kind]
        if self.kind == "session" and self.length_ms:
            parts += f", {duration_text(self.length_ms)} at most"
        return f"{parts}, by {self.time}, {duration_text(self.late_ms)} late at most" if self.time else parts

    def preview(self, state: WindowState | None, match: Match, key: str, known: bool) -> OperatorFinding:
        now, wanted = self._begun(state, match.at_ms), self._windows()
        at_ms = match.at_ms + now.shift_ms
        time_ms = self._time_of(now, match, at_ms)
        now, _ = now.closed(max(now.newest, time_ms) - self.late_ms, "end")
        if now.is_late(time_ms):
            return OperatorFinding(
                False, f"it is late: its time is {utc_text(time_ms)}, and its windows have closed", wanted
            )
        known = known and bool(now.stretches)
        if not known:
            now = msgspec.structs.replace(now, stretches=now.with_event(time_ms, 0, 0, match.at_ms))
        count, end = now.buffered() - (not known), now.next_end()
        found = f"{count:,} events in open windows; the next closes at {utc_text(end)}"
        if self.time:
            found += f", or after {about(self.late_ms)} without an event"
        return OperatorFinding(True, found, wanted, f"it {'is in' if known else 'goes into'} a window: {found}")


def _time_path(node: Node, problems: Problems) -> str:
    """Return the path in `time`; "": events count when they were accepted."""
    given = node.value.get("time")
    if given is None or given.value == ACCEPTED:
        return ""
    return event_path(given, "window.time", "a time, or `accepted`", problems)


def _time_ms(value: Any, path: str) -> int:
    """Return a time, of RFC 3339 or a number, in milliseconds since 1970.

    Raises Invalid.
    """
    if isinstance(value, str) and (moment := parse_time(value)) is not None and moment.year >= 1970:
        return max(0, int(moment.timestamp() * 1000))
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e19:
        unit = next((unit for least, unit in UNITS if value >= least), 0)
        return int(value) // unit if unit else round(value * 1000)
    what = f"the event has no {path}" if value is MISSING else f"{path} is {as_text(value)[:60]!r}"
    raise Invalid(
        f"window.time: {what}",
        remedy="a time like 2026-01-31T12:00:00Z, or a number of seconds, milliseconds ... since 1970",
    )
