"""Rules with memory: a pure fold (states, record of `oncue.matches`) -> (states, closed windows). No clock, no I/O.

An operator (dedupe, batch ...) is a small class: `take` folds one match into the state of its key, `tick` folds the time.
An event goes through the rule's operators in turn; what the last one lets pass, or closes, fires.

What a host must do (embedded_runner.py on SQLite; another may keep the states in tables of Kafka):
1. Read each partition of `oncue.matches` in order, and give each record to `fold` with its offset. A state remembers the
   last offset that it has applied and ignores older ones, so records may come again.
2. Keep the states (`States`). What one record changes becomes durable together with the partition's next offset. A host that
   cannot do that writes the states of later stages before those of earlier ones: a record that comes again then passes
   the earlier stage again, and the later one ignores it.
3. Make what fires durable in the log before the states that forget it. Ids of tasks follow from rule, key and window
   (`window_id_seed`), so a firing that is repeated after a crash is the same tasks.
4. Append a Tick to a partition when `due` has something there, or when a rule in force no longer has the operator of an open
   window; and nothing otherwise. Only who owns the partition does so. If more is due than one tick closes, append another.
5. Keep the state of a key until `forget_ms` has passed in the partition (the newest `at_ms` applied), an hour for good measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Stored
from oncue.rules.operators.records import (
    BatchSpec,
    BufferedEvent,
    Closed,
    DedupeSpec,
    Match,
    MatchesRecord,
    Spec,
    Tick,
    spec_hash,
)

WINDOW_EVENTS = 10_000  # a window that holds so many, or so many bytes, closes early
WINDOW_BYTES = 1_000_000  # so that a window fits into one record (a dead letter)
TICK_WINDOWS = 64  # closed by one tick: bounds the memory
MARGIN_MS = 3_600_000  # a host keeps a state for so long after it tells nothing any more


class StateKey(NamedTuple):
    """The key of a state."""

    rule: str
    spec: str  # spec_hash
    key: str


class DedupeState(Stored, tag="dedupe", frozen=True):
    applied: int
    fired_ms: int
    until_ms: int
    suppressed: int = 0  # since it fired


class BatchState(Stored, tag="batch", frozen=True):
    """With a count of 0 no window is open."""

    applied: int
    closed_ms: int = 0
    count: int = 0
    size_bytes: int = 0
    held_bytes: int = 0
    opening: int = 0
    opened_ms: int = 0
    due_ms: int = 0  # 0: not by time
    label: str = ""
    version: int = 0
    needs: tuple[str, ...] = ()


State = DedupeState | BatchState
S = TypeVar("S", DedupeState, BatchState)


class States(Protocol):
    """Of one partition."""

    def get(self, where: StateKey) -> State | None: ...

    def put(self, where: StateKey, state: State) -> None: ...

    def holds(self, where: StateKey, source: str, id: str) -> bool:
        """Whether the open window has this event."""
        ...

    def hold(self, where: StateKey, held: BufferedEvent) -> None: ...

    def release(self, where: StateKey) -> list[BufferedEvent]:
        """All that is held, in the order of their places; it is held no longer."""
        ...

    def due(self, at_ms: int, before: int, most: int) -> list[StateKey]:
        """Open windows with 0 < due_ms <= at_ms and applied < before: the first by (due_ms, where)."""
        ...

    def open(self, rule: str, spec: str, before: int, most: int) -> list[StateKey]:
        """Open windows of a rule's operator with applied < before: the first by key."""
        ...


class Close(NamedTuple):
    window: BatchState
    why: str


class Step(NamedTuple):
    """What follows from a match: windows that close before it, whether it is held, windows that close with it, and whether
    it passes to the next operator."""

    state: State
    before: tuple[Close, ...] = ()
    holds: bool = False
    after: tuple[Close, ...] = ()
    passes: bool = False


class DedupeFold:
    @staticmethod
    def take(
        spec: DedupeSpec, state: DedupeState | None, match: Match, offset: int, known: Callable[[], bool]
    ) -> Step | None:
        if state is not None:
            if offset <= state.applied:
                return None
            if match.at_ms < state.until_ms:
                return Step(msgspec.structs.replace(state, applied=offset, suppressed=state.suppressed + 1))
        return Step(DedupeState(offset, match.at_ms, match.at_ms + spec.ttl_ms), passes=True)


class BatchFold:
    @staticmethod
    def take(
        spec: BatchSpec, state: BatchState | None, match: Match, offset: int, known: Callable[[], bool]
    ) -> Step | None:
        now = state or BatchState(-1)
        if offset <= now.applied:
            return None
        before: tuple[Close, ...] = ()
        if now.count and now.due_ms and match.at_ms >= now.due_ms:
            before, now = (Close(now, "wait"),), BatchState(offset)
        elif now.count and known():
            return Step(msgspec.structs.replace(now, applied=offset))
        nbytes = held_bytes(match.event)
        if now.count and now.held_bytes + nbytes > WINDOW_BYTES:
            before, now = (*before, Close(now, "full")), BatchState(offset)
        if not now.count:
            due_ms = match.at_ms + spec.wait_ms if spec.wait_ms else 0
            now = BatchState(offset, opening=offset, opened_ms=match.at_ms, due_ms=due_ms, needs=match.needs)
        now = msgspec.structs.replace(
            now,
            applied=offset,
            count=now.count + 1,
            size_bytes=now.size_bytes + match.event.size_bytes,
            held_bytes=now.held_bytes + nbytes,
            label=match.label,
            version=match.version,
        )
        why = _enough(spec, now)
        if not why:
            return Step(now, before, holds=True)
        return Step(BatchState(offset, match.at_ms), before, holds=True, after=(Close(now, why),))


def _enough(spec: BatchSpec, state: BatchState) -> str:
    if spec.count and state.count >= spec.count:
        return "count"
    if spec.size_bytes and state.size_bytes >= spec.size_bytes:
        return "bytes"
    return "full" if state.count >= WINDOW_EVENTS else ""


def held_bytes(held: BufferedEvent) -> int:
    """As stored, with the largest place."""
    return len(encode(held)) + 8


def fold(states: States, record: MatchesRecord, partition: int, offset: int) -> list[Closed]:
    """Fold one record into the states of its partition; the windows that fire."""
    if isinstance(record, Match):
        return _match(states, record, partition, offset)
    if isinstance(record, Tick):
        return _tick(states, record, partition, offset)
    return [record]


def _match(states: States, match: Match, partition: int, offset: int) -> list[Closed]:
    closed: list[Closed] = []
    held = msgspec.structs.replace(match.event, place=offset)
    key = ""
    for stage in match.stages:
        where, key = StateKey(match.rule, spec_hash(stage.spec, match.needs), stage.key), stage.key
        step = _take(stage.spec, states, where, match, offset)
        if step is None:
            return closed
        closed += [_closed(states, where, close, partition) for close in step.before]
        if step.holds:
            states.hold(where, held)
        closed += [_closed(states, where, close, partition) for close in step.after]
        states.put(where, step.state)
        if not step.passes:
            return closed
    passed = Closed(
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
        (held,),
    )
    return [*closed, passed]


def _take(spec: Spec, states: States, where: StateKey, match: Match, offset: int) -> Step | None:
    def known() -> bool:
        return states.holds(where, match.event.source, match.event.id)

    state = states.get(where)
    if isinstance(spec, DedupeSpec):
        return DedupeFold.take(spec, state if isinstance(state, DedupeState) else None, match, offset, known)
    return BatchFold.take(spec, state if isinstance(state, BatchState) else None, match, offset, known)


def _tick(states: States, tick: Tick, partition: int, offset: int) -> list[Closed]:
    chosen = [(where, "wait") for where in states.due(tick.at_ms, offset, TICK_WINDOWS)]
    for rule, spec in tick.retired:
        if len(chosen) < TICK_WINDOWS:
            taken = {where for where, _ in chosen}
            more = states.open(rule, spec, offset, TICK_WINDOWS - len(chosen))
            chosen += [(where, "changed") for where in more if where not in taken]
    closed = []
    for where, why in chosen:
        window = states.get(where)
        if isinstance(window, BatchState) and window.count:
            closed.append(_closed(states, where, Close(window, why), partition))
            states.put(where, BatchState(offset, tick.at_ms))
    return closed


def _closed(states: States, where: StateKey, close: Close, partition: int) -> Closed:
    w = close.window
    return Closed(
        VERSION,
        where.rule,
        w.label,
        w.version,
        where.key,
        w.needs,
        partition,
        w.opening,
        w.opened_ms,
        close.why,
        tuple(states.release(where)),
    )


# ---------------------------------------------------------------- what hosts ask of a state


def due_ms(state: State) -> int:
    """When a tick is wanted; 0: never."""
    return state.due_ms if isinstance(state, BatchState) and state.count else 0


def forget_ms(state: State) -> int:
    """From when on the state tells nothing; 0: while it holds something."""
    if isinstance(state, DedupeState):
        return state.until_ms
    return 0 if state.count else state.closed_ms or 1


def held(state: State) -> int:
    """Events in the open window."""
    return state.count if isinstance(state, BatchState) else 0


def window_id_seed(closed: Closed, replay: str = "") -> bytes:
    """What the ids of its tasks are hashed from. The rule's version is not in it: a firing repeated after a redeploy is
    the same."""
    first: Sequence[str] = (closed.events[0].source, closed.events[0].id) if closed.events else ("", "")
    parts = ("window", closed.rule, replay, closed.key, str(closed.partition), str(closed.opening), *first)
    return "\0".join(parts).encode()
