"""Pure fold of stateful rules, without clock and I/O.

    (states, record of `oncue.matches`) -> (states, closed windows)

An event goes through the rule's operators in their order (operators/base.py). The rule fires for
what the last operator passes on or releases from its buffer. Firings go through the rule's limiters
(limits.py), whose fold calls this one.

Contract of a runner (embedded_runner.py with states in SQLite, kafka_runner.py with states in
`oncue.windows`):
1. Read each partition of `oncue.matches` in order, and give each record to `fold` with its offset.
   A state holds the last offset applied to it, and `fold` ignores older records, so records may be
   delivered again.
2. Store the states (`States`). The changes by one record become durable together with the
   partition's next offset. A runner without such transactions writes the states of later operators
   before those of earlier ones: a record that is delivered again then passes the earlier operator
   again, and the later one ignores it.
3. Make firings durable in the log before the states that no longer contain them. Task ids follow
   from rule, key and window (`window_id_seed`), so a firing that is repeated after a crash gives
   the same tasks.
4. Append a Tick to a partition only when `due` returns something there, or when no rule in force
   has the operator of an open window any more. Only the owner of the partition appends it. If more
   is due than one tick closes, append another.
5. Keep the state of a key until its `forget_ms` has passed in the partition (in newest `at_ms`
   applied), plus one hour.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import msgspec

from oncue.protocol.records import VERSION
from oncue.rules.operators.base import (
    BUFFER,
    DISCARD,
    BufferAt,
    Close,
    DropBefore,
    Effect,
    Fire,
    FireSpan,
    OperatorState,
    Step,
)
from oncue.rules.operators.catalog import resolve
from oncue.rules.operators.records import (
    DROP,
    BufferedEvent,
    ClosedWindow,
    Match,
    MatchesRecord,
    TaskEnd,
    Tick,
    Waited,
)

TICK_WINDOWS = 64  # closed by one tick: bounds the memory
AHEAD_MS = 60_000  # a time of another process that is more ahead is of a wrong clock
MARGIN_MS = 3_600_000  # a runner keeps a state this long after it has no effect any more

_time, _place = attrgetter("size_bytes"), attrgetter("place")


class StateKey(NamedTuple):
    """The key of a state."""

    rule: str
    operator: str  # operator_id
    key: str


class States(Protocol):
    """The states of one partition."""

    def get(self, where: StateKey) -> OperatorState | None: ...

    def set_state(self, where: StateKey, state: OperatorState) -> None: ...

    def count_suppressed(self, rule: str) -> None:
        """Count one event that an operator suppressed."""
        ...

    def is_buffered(self, where: StateKey, source: str, id: str) -> bool:
        """True if the buffer has this event."""
        ...

    def buffer(self, where: StateKey, event: BufferedEvent) -> None: ...

    def release(self, where: StateKey) -> list[BufferedEvent]:
        """Empty the buffer; return its events in the order of their places."""
        ...

    def take(self, where: StateKey) -> BufferedEvent | None:
        """Remove the oldest event from the buffer, and return it."""
        ...

    def drop(self, where: StateKey, before: int) -> None:
        """Remove the events with a place before this one from the buffer."""
        ...

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        """Return states with 0 < due_ms <= at_ms and applied < before.

        The first `most` by (due_ms, key).
        """
        ...

    def open(self, rule: str, operator: str, before: int, most: int) -> list[StateKey]:
        """Return states of a rule's operator with buffered events.

        The first `most` by key, with applied < before.
        """
        ...


def fold(states: States, record: MatchesRecord, partition: int, offset: int) -> list[ClosedWindow]:
    """Fold one record into its partition's states; return the windows that fire."""
    match record:
        case Match():
            return _fold_match(states, record, partition, offset)
        case Tick():
            return _fold_tick(states, record, partition, offset)
        case ClosedWindow():
            return [record]
        case TaskEnd():
            return []


def by_clock(state: OperatorState, now_ms: int) -> OperatorState | None:
    """Return the state as begun now, if it began in the future; None: it did not.

    A clock that was ahead has been put right, or this one is behind. The state lasts as long as its
    operator says, by either clock.
    """
    ahead_ms = state.since_ms() - now_ms
    return state.moved(-ahead_ms) if ahead_ms > AHEAD_MS else None


def check_operators(match: Match) -> None:
    """Raises Undecodable: a newer version wrote an operator of the match."""
    for stage in match.stages:
        resolve(bytes(stage.operator), match.needs)


def state_keys(match: Match) -> list[StateKey]:
    """Return the keys of the states that a match touches. Raises Undecodable."""
    return [StateKey(match.rule, resolve(bytes(stage.operator), match.needs).id, stage.key) for stage in match.stages]


def _fold_match(states: States, match: Match, partition: int, offset: int) -> list[ClosedWindow]:
    closed: list[ClosedWindow] = []
    event = msgspec.structs.replace(match.event, place=offset)
    key = ""
    for stage in match.stages:
        operator, operator_id = resolve(bytes(stage.operator), match.needs)
        key = stage.key
        where = StateKey(match.rule, operator_id, key)
        state = states.get(where)
        if state is not None and offset <= state.applied:
            return closed

        def known(where: StateKey = where) -> bool:
            return states.is_buffered(where, match.event.source, match.event.id)

        step = operator.step(state, match, offset, known)
        closed += _apply(states, where, step, partition, event)
        if step.suppressed:
            states.count_suppressed(match.rule)
        if not step.passes:
            return closed
    passed = ClosedWindow(
        VERSION,
        match.rule,
        match.label,
        match.version,
        key,
        match.needs,
        partition,
        offset,
        match.at_ms,
        "first",
        (event,),
    )
    return [*closed, passed]


def _fold_tick(states: States, tick: Tick, partition: int, offset: int) -> list[ClosedWindow]:
    chosen = [(where, "wait") for where in states.due(tick.at_ms, offset, TICK_WINDOWS)]
    for rule, operator in tick.retired:
        if len(chosen) < TICK_WINDOWS:
            due = {where for where, _ in chosen}
            more = states.open(rule, operator, offset, TICK_WINDOWS - len(chosen))
            chosen += [(where, "changed") for where in more if where not in due]
    closed: list[ClosedWindow] = []
    for where, reason in chosen:
        state = states.get(where)
        step = state.tick(tick.at_ms, offset, reason) if state is not None else None
        if step is not None:
            closed += _apply(states, where, step, partition)
    return closed


def _apply(
    states: States, where: StateKey, step: Step, partition: int, event: BufferedEvent | None = None
) -> list[ClosedWindow]:
    closed: list[ClosedWindow] = []
    for kind, effects in groupby(step.effects, type):
        if kind is FireSpan:
            closed += _of_spans(states, where, [span for span in effects if isinstance(span, FireSpan)], partition)
        else:
            closed += [c for effect in effects if (c := _effect(states, where, effect, partition, event)) is not None]
    states.set_state(where, step.state)
    return closed


def _effect(
    states: States, where: StateKey, effect: Effect, partition: int, event: BufferedEvent | None
) -> ClosedWindow | None:
    if effect is BUFFER:
        assert event is not None, "a tick has no event to buffer"
        states.buffer(where, event)
    elif effect is DISCARD:
        states.release(where)
    elif isinstance(effect, DropBefore):
        states.drop(where, effect.place)
    elif isinstance(effect, Fire):
        return _closed(where, effect, partition, states.release(where))
    elif isinstance(effect, BufferAt):
        assert event is not None, "a tick has no event to buffer"
        states.buffer(where, msgspec.structs.replace(event, size_bytes=effect.time_ms))
    elif isinstance(effect, Close):
        return _ended(states, where, effect, partition)
    return None


def _of_spans(states: States, where: StateKey, spans: Sequence[FireSpan], partition: int) -> list[ClosedWindow]:
    """Fire time spans, one after the other.

    The buffer is read and written once, not for each of them.
    """
    closed: list[ClosedWindow] = []
    events = sorted(states.release(where), key=_time)
    for span in spans:
        part = events[bisect_left(events, span.start, key=_time) : bisect_left(events, span.end, key=_time)]
        fired = _closed(where, span.fire, partition, sorted(part, key=_place), span.waited)
        closed.append(msgspec.structs.replace(fired, span_ms=(span.start, span.end)))
        events = events[bisect_left(events, span.keep_from, key=_time) :]
    for event in sorted(events, key=_place):
        states.buffer(where, event)
    return closed


def _ended(states: States, where: StateKey, close: Close, partition: int) -> ClosedWindow:
    """End the wait for certain events.

    Those that take no part in a firing are suppressed.
    """
    events = states.release(where)
    part = [event for event in events if not close.only or event.name in close.only]
    for _ in range(len(events) - len(part) if close.waited.end != DROP else len(events)):
        states.count_suppressed(where.rule)
    return _closed(where, close.fire, partition, part, close.waited)


def _closed(
    where: StateKey, fire: Fire, partition: int, events: Sequence[BufferedEvent], waited: Waited | None = None
) -> ClosedWindow:
    return ClosedWindow(
        VERSION,
        where.rule,
        fire.label,
        fire.version,
        where.key,
        fire.needs,
        partition,
        fire.opening,
        fire.opened_ms,
        fire.reason,
        tuple(events),
        waited,
    )


def window_id_seed(window: ClosedWindow, replay: str = "") -> bytes:
    """Return the bytes from which the ids of a window's tasks are hashed.

    The rule's version is not in it, so a firing that is repeated after a redeploy gives the same
    tasks.
    """
    first: Sequence[str] = (window.events[0].source, window.events[0].id) if window.events else ("", "")
    parts = ("window", window.rule, replay, window.key, str(window.partition), str(window.opening), *first)
    parts += tuple(map(str, window.span_ms))
    return "\0".join(parts).encode()
