"""What a rule would do with some events on a virtual clock: the production fold, over states in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from oncue.errors import Invalid, OncueError
from oncue.protocol.records import VERSION, Event
from oncue.quantities import duration_text
from oncue.rules.explain import decide, explain, rendered
from oncue.rules.matching.conditions import equal, show
from oncue.rules.operators.event_rows import EventRows
from oncue.rules.operators.records import BufferedEvent, Closed, Tick
from oncue.rules.parsing.rule_file import Rule, RuleTest
from oncue.rules.stateful.fold import BatchState, State, StateKey, due_ms, fold


class InMemory:
    """The states of one partition, in a dict."""

    def __init__(self) -> None:
        self.states: dict[StateKey, State] = {}
        self.held: dict[StateKey, dict[tuple[str, str], BufferedEvent]] = {}

    def get(self, where: StateKey) -> State | None:
        return self.states.get(where)

    def put(self, where: StateKey, state: State) -> None:
        self.states[where] = state

    def holds(self, where: StateKey, source: str, id: str) -> bool:
        return (source, id) in self.held.get(where, {})

    def hold(self, where: StateKey, held: BufferedEvent) -> None:
        self.held.setdefault(where, {})[held.source, held.id] = held

    def release(self, where: StateKey) -> list[BufferedEvent]:
        return sorted(self.held.pop(where, {}).values(), key=lambda h: h.place)

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        found = [
            (due, where) for where, s in self.states.items() if 0 < (due := due_ms(s)) <= at_ms and s.applied < before
        ]
        return [where for _, where in sorted(found)[:most]]

    def open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        found = [w for w, s in self.states.items() if w[:2] == (rule, spec) and s.applied < before and _open(s)]
        return sorted(found)[:most]

    def next_due_ms(self) -> int:
        return min((due for s in self.states.values() if (due := due_ms(s))), default=0)


def _open(state: State) -> bool:
    return isinstance(state, BatchState) and state.count > 0


class Fired(msgspec.Struct, frozen=True):
    at_ms: int
    events: int
    args: Any  # of the run, or a list of those of all runs
    trouble: str = ""


def rehearse(rule: Rule, events: Sequence[tuple[int, Event]]) -> list[Fired]:
    """What fires for (at_ms, event) pairs, in the order of their times; then time runs on until no window has a `wait`."""
    ordered = sorted(events, key=lambda pair: pair[0])
    if rule.memory is None:
        return [_of_event(rule, at_ms, event) for at_ms, event in ordered if decide(rule, event) is None]
    clock, states, found = _Clock(), InMemory(), []
    for at_ms, event in ordered:
        found += clock.advance(rule, states, at_ms)
        if decide(rule, event) is None:
            try:
                match = rule.memory.match(rule.name, "", 0, event, at_ms, 0)
            except Invalid as e:
                found.append(Fired(at_ms, 1, None, e.message))
                continue
            found += [_of_window(rule, at_ms, c) for c in fold(states, match, 0, clock.offset())]
    return found + clock.advance(rule, states, None)


class _Clock:
    def __init__(self) -> None:
        self._offset = -1

    def offset(self) -> int:
        self._offset += 1
        return self._offset

    def advance(self, rule: Rule, states: InMemory, to_ms: int | None) -> list[Fired]:
        """Tick at each time that something is due at; to None: until nothing is."""
        found: list[Fired] = []
        while (due := states.next_due_ms()) and (to_ms is None or due <= to_ms):
            closed = fold(states, Tick(VERSION, due), 0, self.offset())
            found += [_of_window(rule, due, c) for c in closed]
        return found


def _of_event(rule: Rule, at_ms: int, event: Event) -> Fired:
    args, trouble = rendered(rule, event)
    return Fired(at_ms, 1, args, trouble)


def _of_window(rule: Rule, at_ms: int, closed: Closed) -> Fired:
    rows = EventRows.of(closed)
    try:
        args = [run.args.render(rows) for run in rule.runs]
    except Invalid as e:
        return Fired(at_ms, len(closed.events), None, e.message)
    return Fired(at_ms, len(closed.events), args[0] if len(args) == 1 else args)


# ---------------------------------------------------------------- tests of a rule file


def run_over_time(rule: Rule, test: RuleTest, read: Callable[[Any], Event]) -> tuple[bool, str]:
    """(passed, why) of a test with several events, or of a rule with memory."""
    given = test.events or ((0, test.event),)
    try:
        # Events that are made up differ in their ids, as those of the world do.
        events = [(at_ms, _numbered(read(event), event, n)) for n, (at_ms, event) in enumerate(given)]
    except OncueError as e:
        return False, str(e)
    found = rehearse(rule, events)
    trouble = next((f.trouble for f in found if f.trouble), "")
    if trouble:
        return False, f"a dead letter: {trouble}"
    if not (len(found) == test.fires if type(test.fires) is int else bool(found) == test.fires):
        return False, _fired(rule, events, found)
    wanted = test.args if test.events or test.args is None else [test.args]
    if wanted is not None and found and not equal(wanted)([f.args for f in found]):
        return False, f"the arguments are {show([f.args for f in found])}, expected {show(wanted)}"
    return True, _fired(rule, events, found)


def _numbered(event: Event, given: Any, n: int) -> Event:
    return event if not isinstance(given, dict) or "id" in given else msgspec.structs.replace(event, id=f"test-{n + 1}")


def _fired(rule: Rule, events: Sequence[tuple[int, Event]], found: Sequence[Fired]) -> str:
    """How often, when, and, where it did not at all, why not."""
    if found:
        times = ", ".join(f"at {duration_text(f.at_ms)} for {f.events}" for f in found[:20])
        return f"it fires {len(found)} time{'s' if len(found) > 1 else ''}: {times}"
    reasons = [e.why for _, event in events if not (e := explain(rule, event)).fires]
    if reasons:
        return f"it does not fire: {reasons[0]}"
    return (
        "it does not fire: its window is open still, and has no `wait` to close it"
        if rule.memory
        else "it does not fire"
    )
