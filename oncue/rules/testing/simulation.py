"""Simulation of a rule on a virtual clock.

It runs the production fold over states in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid, OncueError
from oncue.protocol.records import OK, VERSION, Event
from oncue.quantities import duration_text
from oncue.rules.explain import EMPTY_LIST, decide, explain, rendered, task_arguments
from oncue.rules.limiters.base import DROPPED
from oncue.rules.limiters.catalog import PAUSE
from oncue.rules.matching.conditions import equal, show
from oncue.rules.operators.base import OperatorState
from oncue.rules.operators.chain import OperatorChain
from oncue.rules.operators.event_rows import EventRows
from oncue.rules.operators.overdue import not_fired
from oncue.rules.operators.records import DROP, TELL, BufferedEvent, ClosedWindow, MatchesRecord, TaskEnd, Tick
from oncue.rules.parsing.rule_file import Rule, RuleTest
from oncue.rules.stateful.fold import StateKey
from oncue.rules.stateful.limits import firing_id, fold_record
from oncue.rules.stateful.pending_changes import event_key

# The year 2100: the virtual clock begins there if the events' own times count.
EVENT_CLOCK_MS = 4_102_444_800_000


class InMemoryStates:
    """The states of one partition, in a dict."""

    def __init__(self) -> None:
        self.states: dict[StateKey, OperatorState] = {}
        self.buffers: dict[StateKey, dict[tuple[str, str], BufferedEvent]] = {}
        self.suppressed = 0

    def get(self, where: StateKey) -> OperatorState | None:
        return self.states.get(where)

    def set_state(self, where: StateKey, state: OperatorState) -> None:
        self.states[where] = state

    def count_suppressed(self, rule: str) -> None:
        self.suppressed += 1

    def is_buffered(self, where: StateKey, source: str, id: str) -> bool:
        return (source, id) in self.buffers.get(where, {})

    def buffer(self, where: StateKey, event: BufferedEvent) -> None:
        self.buffers.setdefault(where, {})[event.source, event.id] = event

    def release(self, where: StateKey) -> list[BufferedEvent]:
        return sorted(self.buffers.pop(where, {}).values(), key=lambda event: event.place)

    def take(self, where: StateKey) -> BufferedEvent | None:
        held = self.buffers.get(where)
        return held.pop(min(held, key=lambda k: (held[k].place, event_key(*k)))) if held else None

    def drop(self, where: StateKey, before: int) -> None:
        kept = {key: event for key, event in self.buffers.get(where, {}).items() if event.place >= before}
        self.buffers[where] = kept

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        found = [
            (due, where) for where, s in self.states.items() if 0 < (due := s.due_ms()) <= at_ms and s.applied < before
        ]
        return [where for _, where in sorted(found)[:most]]

    def open(self, rule: str, operator: str, before: int, most: int) -> list[StateKey]:
        found = [w for w, s in self.states.items() if w[:2] == (rule, operator) and s.applied < before and s.buffered()]
        return sorted(found)[:most]

    def next_due_ms(self) -> int:
        return min((due for s in self.states.values() if (due := s.due_ms())), default=0)


class SimulatedFiring(msgspec.Struct, frozen=True):
    at_ms: int
    events: int
    args: Any  # of the run, or a list of those of all runs
    trouble: str = ""  # reason of a dead letter
    dropped: str = ""  # why the events were only counted


def simulate(rule: Rule, events: Sequence[tuple[int, Event]], takes_ms: int = 0) -> list[SimulatedFiring]:
    """Return the firings for (at_ms, event) pairs.

    After the last event the clock runs until no state is due. `takes_ms`: the time from a firing to
    the outcomes of its tasks, for limiters.
    """
    ordered = sorted(events, key=lambda pair: pair[0])
    if rule.operators is None:
        return [_of_event(rule, at_ms, event) for at_ms, event in ordered if decide(rule, event) is None]
    rule = _unpaused(rule, rule.operators)
    assert rule.operators is not None
    clock = _Clock(rule, takes_ms)
    for at_ms, event in ordered:
        clock.advance(at_ms)
        if decide(rule, event) is None:
            try:
                match = rule.operators.match(rule.name, "", 0, event, at_ms, 0)
            except Invalid as e:
                clock.found.append(SimulatedFiring(at_ms, 1, None, e.message))
                continue
            clock.fold(match, at_ms)
    clock.advance(None)
    return clock.found


def _unpaused(rule: Rule, operators: OperatorChain) -> Rule:
    """Return the rule as it is tested: as if it were not paused."""
    limiters = tuple(each for each in operators.limiters if each.limiter.name() != PAUSE)
    return msgspec.structs.replace(rule, operators=msgspec.structs.replace(operators, limiters=limiters))


class _Clock:
    """One partition with a virtual clock. `found`: the firings so far."""

    def __init__(self, rule: Rule, takes_ms: int) -> None:
        self._rule, self._takes_ms, self._offset = rule, takes_ms, -1
        self._states = InMemoryStates()
        self._ends: list[tuple[int, int, TaskEnd]] = []  # heap of outcomes that will come: (at_ms, number, record)
        self.found: list[SimulatedFiring] = []

    def fold(self, record: MatchesRecord, at_ms: int) -> None:
        """Append a record to the partition, and run what fires."""
        self._offset += 1
        for closed in fold_record(self._states, record, 0, self._offset):
            if closed.waited is not None and closed.waited.end == TELL:
                continue
            firing = _of_window(self._rule, at_ms, closed)
            self.found.append(firing)
            if closed.limited:
                end_ms = at_ms if firing.trouble or firing.dropped else at_ms + self._takes_ms
                end = TaskEnd(VERSION, closed.rule, firing_id(closed), 0, 1, OK, end_ms)
                heapq.heappush(self._ends, (end_ms, len(self.found), end))

    def advance(self, to_ms: int | None) -> None:
        """Append ticks and outcomes at their times up to `to_ms`.

        None: until nothing is due.
        """
        while True:
            tick_ms = self._states.next_due_ms()
            end_ms = self._ends[0][0] if self._ends else 0
            ended = bool(self._ends) and (not tick_ms or end_ms <= tick_ms)
            at_ms = end_ms if ended else tick_ms
            if not (ended or tick_ms) or (to_ms is not None and at_ms > to_ms):
                return
            self.fold(heapq.heappop(self._ends)[-1] if ended else Tick(VERSION, at_ms), at_ms)


def _of_event(rule: Rule, at_ms: int, event: Event) -> SimulatedFiring:
    args, trouble = rendered(rule, event)
    return SimulatedFiring(at_ms, 1, args, trouble, "" if trouble else _empty(rule, args))


def _of_window(rule: Rule, at_ms: int, closed: ClosedWindow) -> SimulatedFiring:
    if closed.refused == DROPPED:
        return SimulatedFiring(at_ms, len(closed.events), None, dropped="the queue is full")
    if closed.refused:
        return SimulatedFiring(at_ms, len(closed.events), None, closed.refused)
    waited = closed.waited
    if waited is not None and waited.end:
        why = not_fired(closed)
        trouble, dropped = ("", why) if waited.end == DROP else (why, "")
        return SimulatedFiring(at_ms, len(closed.events), None, trouble, dropped)
    rows = EventRows.of(closed)
    try:
        args = task_arguments(rule, rows)
    except Invalid as e:
        return SimulatedFiring(at_ms, len(closed.events), None, e.message)
    return SimulatedFiring(at_ms, len(closed.events), args, dropped=_empty(rule, args))


def _empty(rule: Rule, args: Any) -> str:
    """Return why a firing makes no task; "": it does."""
    return EMPTY_LIST if rule.has_items and not args else ""


# ---------------------------------------------------------------- tests of a rule file


def run_over_time(rule: Rule, test: RuleTest, read: Callable[[Any], Event]) -> tuple[bool, str]:
    """Run a test over time; return (passed, reason).

    It has several events, or its rule is stateful.
    """
    given = test.events or ((0, test.event),)
    last = rule.operators.last if rule.operators is not None else None
    began_ms = EVENT_CLOCK_MS if last is not None and last.by_event_time() else 0
    try:
        # Events without an id get different ids.
        events = [(began_ms + at_ms, _numbered(read(event), event, n)) for n, (at_ms, event) in enumerate(given)]
    except OncueError as e:
        return False, str(e)
    all_found = simulate(rule, events, test.takes_ms)
    all_found = [msgspec.structs.replace(f, at_ms=f.at_ms - began_ms) for f in all_found]
    found = [f for f in all_found if not f.trouble and not f.dropped]
    if (wrong := _dead_letters(test, all_found)) is not None:
        return False, wrong
    if not (len(found) == test.fires if type(test.fires) is int else bool(found) == test.fires):
        return False, _fired(rule, events, all_found)
    wanted = test.args if test.events or test.args is None else [test.args]
    if wanted is not None and found and not equal(wanted)([f.args for f in found]):
        return False, f"the arguments are {show([f.args for f in found])}, expected {show(wanted)}"
    return True, _fired(rule, events, all_found)


def _dead_letters(test: RuleTest, found: Sequence[SimulatedFiring]) -> str | None:
    """Return how the dead letters differ from the expected ones; None: they do not."""
    troubles = [f.trouble for f in found if f.trouble]
    if test.dead and not troubles:
        return f"there is no dead letter, expected one with {test.dead!r}"
    wrong = next((trouble for trouble in troubles if not test.dead or test.dead not in trouble), None)
    return None if wrong is None else f"a dead letter: {wrong}"


def _numbered(event: Event, given: Any, n: int) -> Event:
    return event if not isinstance(given, dict) or "id" in given else msgspec.structs.replace(event, id=f"test-{n + 1}")


def _fired(rule: Rule, events: Sequence[tuple[int, Event]], all_found: Sequence[SimulatedFiring]) -> str:
    """Return in words how often and when the rule fired, or why it did not."""
    found = [f for f in all_found if not f.trouble and not f.dropped]
    if found:
        times = ", ".join(f"at {duration_text(f.at_ms)} for {f.events}" for f in found[:20])
        return f"it fires {len(found)} time{'s' if len(found) > 1 else ''}: {times}"
    ended = [f"a dead letter: {f.trouble}" if f.trouble else f"dropped: {f.dropped}" for f in all_found]
    if ended:
        return f"it does not fire: {ended[0]}"
    reasons = [e.why for _, event in events if not (e := explain(rule, event)).fires]
    if reasons:
        return f"it does not fire: {reasons[0]}"
    unfired = rule.operators.last.UNFIRED if rule.operators and rule.operators.last else ""
    return f"it does not fire: {unfired}" if unfired else "it does not fire"
