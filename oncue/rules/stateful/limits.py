"""Fold of stateful rules with their limiters: pure, without clock and I/O.

    record ──fold (fold.py)──► firings ──limiters──► firings that become tasks

Each firing passes the rule's limiters in their order (limiters/base.py), or waits in the queue of
one of them. What lets it pass is a record too: the outcome of a task (TaskEnd), the time (Tick), or
other options of the limiters, which a Match or a Tick carries. A record that is read again is known
by `LimitsState.applied`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from oncue.ids import PREFIX, nth_id, window_task_ids
from oncue.protocol.codec import decode, encode
from oncue.rules.limiters.base import (
    DROPPED,
    MOST_QUEUE,
    QUEUE_BYTES,
    AnyLimiter,
    LimiterState,
    LimitsState,
    PlaceState,
    Verdict,
)
from oncue.rules.limiters.catalog import MEMBERS, PAUSE, RANK, resolve_limiters
from oncue.rules.limiters.failures import FailuresLimiter, FailuresState
from oncue.rules.limiters.pause import PauseState
from oncue.rules.limiters.running import RunningLimiter, RunningState
from oncue.rules.operators.records import (
    TELL,
    BufferedEvent,
    ClosedWindow,
    Match,
    MatchesRecord,
    RuleLimits,
    TaskEnd,
    Tick,
)
from oncue.rules.stateful.fold import TICK_WINDOWS, StateKey, States, fold, state_keys, window_id_seed

LIMITS, PLACE = "limits", "place"  # ids of LimitsState and PlaceState
CHANGED_KEYS = 1_000  # whose queues are looked at when the options change; the others wait for an outcome
RELEASED = 1_000  # firings that leave a queue by one record


def fold_record(states: States, record: MatchesRecord, partition: int, offset: int) -> list[ClosedWindow]:
    """Fold one record into its partition's states; return the firings that pass.

    Those that a limiter refuses are among them (`refused`).
    """
    match record:
        case Match() if not record.limiters:
            return fold(states, record, partition, offset)
        case Tick():
            return _fold_tick(states, record, partition, offset)
        case ClosedWindow() if limit_keys(record) is None:
            return fold(states, record, partition, offset)
        case _:
            work = _RuleWork.of(states, record.rule, partition, offset)
            return [] if work is None else work.fold(record)


def limiter_keys(match: Match) -> list[StateKey]:
    """Return the keys of limiters' states that a match touches. Raises Undecodable."""
    if not match.limiters:
        return []
    keys = match.event.limit_keys or {}
    names = [limiter.name() for limiter in resolve_limiters(packed(match))]
    return [StateKey(match.rule, LIMITS, ""), *(StateKey(match.rule, name, keys.get(name, "")) for name in names)]


def all_state_keys(match: Match) -> list[StateKey]:
    """Return the keys of all states that a match touches. Raises Undecodable."""
    return state_keys(match) + limiter_keys(match)


def check_limiters(match: Match) -> None:
    """Raises Undecodable: a newer version wrote a limiter of the match."""
    resolve_limiters(packed(match))


def packed(match: Match) -> tuple[bytes, ...]:
    """Return the limiters of a match as they are stored."""
    return tuple(bytes(each) for each in match.limiters)


def limit_keys(closed: ClosedWindow) -> Mapping[str, str] | None:
    """Return the key of a firing for each limiter that has keys.

    None: it passes no limiter, because its rule had none, or because it runs nothing.
    """
    if closed.waited is not None and closed.waited.end:
        return None
    return closed.events[-1].limit_keys if closed.events else {}


def _told_at_once(found: Iterable[ClosedWindow]) -> Iterator[ClosedWindow]:
    """Yield firings, before each with a deadline one that only tells of it.

    That one waits for no limiter.
    """
    for closed in found:
        waited = closed.waited
        if waited is None or not waited.overdue_ms or limit_keys(closed) is None:
            yield closed
            continue
        yield msgspec.structs.replace(closed, waited=msgspec.structs.replace(waited, end=TELL))
        yield msgspec.structs.replace(closed, waited=msgspec.structs.replace(waited, overdue_ms=0))


def firing_id(closed: ClosedWindow) -> bytes:
    """Return the beginning of the ids of a firing's tasks."""
    return window_task_ids(window_id_seed(closed), closed.opened_ms, 1)[0][:PREFIX]


def _fold_tick(states: States, tick: Tick, partition: int, offset: int) -> list[ClosedWindow]:
    found: list[ClosedWindow] = []
    for limits in tick.limits:
        if (work := _RuleWork.of(states, limits.rule, partition, offset)) is not None:
            found += work.change(limits, tick.at_ms)
    due = [where for where in states.due(tick.at_ms, offset, TICK_WINDOWS) if where.operator in MEMBERS]
    for rule in {rule: operator for rule, operator in tick.retired if operator in MEMBERS}:
        if (work := _RuleWork.of(states, rule, partition, offset)) is not None:
            work.retire({operator for name, operator in tick.retired if name == rule})
    for rule, operator in tick.retired:
        if operator in MEMBERS:
            work = _RuleWork(states, rule, partition, offset)
            for where in states.open(rule, operator, offset, TICK_WINDOWS):
                found += work.release(where, None, tick.at_ms, TICK_WINDOWS)
    for closed in _told_at_once(fold(states, tick, partition, offset)):
        limited = limit_keys(closed) is not None
        found += _RuleWork(states, closed.rule, partition, offset).admit(closed, tick.at_ms) if limited else [closed]
    for where in due:
        found += _RuleWork(states, where.rule, partition, offset).release_key(where, tick.at_ms)
    return found


class _Options(NamedTuple):
    limiters: Sequence[AnyLimiter]

    def of(self, name: str) -> AnyLimiter | None:
        return next((limiter for limiter in self.limiters if limiter.name() == name), None)


class _RuleWork:
    """One record applied to the limiters of a rule."""

    def __init__(self, states: States, rule: str, partition: int, offset: int) -> None:
        self._states, self._rule, self._partition, self._offset = states, rule, partition, offset
        found = states.get(StateKey(rule, LIMITS, ""))
        self._limits = found if isinstance(found, LimitsState) else LimitsState(-1)
        self._options = _Options(resolve_limiters(self._limits.limiters))

    @classmethod
    def of(cls, states: States, rule: str, partition: int, offset: int) -> _RuleWork | None:
        """Return the work of a record; None: it is applied already."""
        work = cls(states, rule, partition, offset)
        if offset <= work._limits.applied:
            return None
        work._set(work._limits)
        return work

    def _set(self, limits: LimitsState) -> None:
        self._limits = msgspec.structs.replace(limits, applied=self._offset)
        self._states.set_state(StateKey(self._rule, LIMITS, ""), self._limits)

    def fold(self, record: Match | TaskEnd | ClosedWindow) -> list[ClosedWindow]:
        match record:
            case Match():
                limits = RuleLimits(record.rule, record.label, record.version, packed(record))
                found = self.change(limits, record.at_ms)
                for closed in _told_at_once(fold(self._states, record, self._partition, self._offset)):
                    found += self.admit(closed, record.at_ms)
                return found
            case TaskEnd():
                return self._end(record)
            case ClosedWindow():
                return self.admit(msgspec.structs.replace(record, limited=False, refused=""), record.opened_ms)

    # ------------------------------------------------------------ options

    def change(self, limits: RuleLimits, at_ms: int) -> list[ClosedWindow]:
        """Take the options of the rule's limiters; return the firings that may pass now."""
        old = self._limits
        if limits.limiters == old.limiters or (limits.label == old.label and limits.version < old.version):
            return []
        self._options = _Options(resolve_limiters(limits.limiters))
        self._set(msgspec.structs.replace(old, limiters=limits.limiters, label=limits.label, version=limits.version))
        paused = self._options.of(PAUSE) is not None
        queues = [
            (limiter, self._states.open(self._rule, limiter.name(), self._offset, CHANGED_KEYS))
            for limiter in self._options.limiters
        ]
        found: list[ClosedWindow] = []
        # Those at a later limiter came first: they are the first to wait for the end of a pause.
        for limiter, keys in reversed(queues) if paused else queues:
            for where in keys:
                found += self.release(where, limiter, at_ms, self._pause_room() if paused else RELEASED)
        return found

    def retire(self, names: set[str]) -> None:
        """Forget limiters that the rule has no more."""
        left = tuple(encode(limiter) for limiter in self._options.limiters if limiter.name() not in names)
        if len(left) < len(self._limits.limiters):
            self._set(LimitsState(self._offset, left))

    def _pause_room(self) -> int:
        """Return how many firings more may wait for the end of the pause."""
        state = self._states.get(StateKey(self._rule, PAUSE, ""))
        return MOST_QUEUE - (state.queued if isinstance(state, LimiterState) else 0)

    # ------------------------------------------------------------ firings

    def admit(self, closed: ClosedWindow, at_ms: int, after: int = -1) -> list[ClosedWindow]:
        """Return the firing if it passes the limiters of a higher rank."""
        keys = limit_keys(closed)
        if keys is None:
            return [closed]
        for limiter in self._options.limiters:
            if RANK[limiter.name()] <= after:
                continue
            key = keys.get(limiter.name(), "")
            where = StateKey(self._rule, limiter.name(), key)
            state = self._state(where, limiter)
            verdict = limiter.admit(state, at_ms)
            if verdict is Verdict.PASS:
                self._enter(where, limiter, state, closed, at_ms)
                closed = self._limited(closed, limiter)
                continue
            if verdict is Verdict.DROP:
                self._states.count_suppressed(self._rule)
                return []
            return self._queue(where, limiter, state, closed, verdict, at_ms)
        return [closed]

    def _state(self, where: StateKey, limiter: AnyLimiter) -> LimiterState:
        found = self._states.get(where)
        return found if isinstance(found, LimiterState) else limiter.STATE(-1)

    def _enter(
        self, where: StateKey, limiter: AnyLimiter, state: LimiterState, closed: ClosedWindow, at_ms: int
    ) -> None:
        firing = firing_id(closed)
        entered = limiter.adapted(limiter.enter(state, firing, at_ms))
        self._put(where, entered, at_ms)
        if where.key and isinstance(entered, RunningState):
            self._states.set_state(StateKey(self._rule, PLACE, firing.hex()), PlaceState(self._offset, where.key))

    def _put(self, where: StateKey, state: LimiterState, at_ms: int) -> None:
        at_ms = max(at_ms, state.at_ms)
        self._states.set_state(where, msgspec.structs.replace(state, applied=self._offset, at_ms=at_ms))

    def _limited(self, closed: ClosedWindow, limiter: AnyLimiter) -> ClosedWindow:
        counts = issubclass(limiter.STATE, RunningState)
        return msgspec.structs.replace(closed, limited=True) if counts else closed

    def _queue(
        self,
        where: StateKey,
        limiter: AnyLimiter,
        state: LimiterState,
        closed: ClosedWindow,
        verdict: Verdict,
        at_ms: int,
    ) -> list[ClosedWindow]:
        """Let a firing wait. Return it if the queue is full."""
        item = _item(closed, state.entered)
        if self._states.is_buffered(where, item.source, item.id):  # a repeated event
            return self._dropped(closed)
        if verdict is Verdict.REPLACE and state.queued:
            self._states.release(where)
            for _ in range(state.queued):
                self._states.count_suppressed(self._rule)
            state = msgspec.structs.replace(state, queued=0, queued_bytes=0)
        size = state.queued_bytes + len(item.row)
        if state.queued >= limiter.queue or size > QUEUE_BYTES:
            if limiter.full == "drop":
                return self._dropped(closed)
            full = f"{state.queued:,} firings wait for `{limiter.name()}` already: {limiter.waits(state, where.key, at_ms)}"
            return [msgspec.structs.replace(closed, refused=full)]
        self._states.buffer(where, item)
        longer = msgspec.structs.replace(state, queued=state.queued + 1, queued_bytes=size, entered=state.entered + 1)
        self._put(where, limiter.adapted(longer), at_ms)
        return []

    def _dropped(self, closed: ClosedWindow) -> list[ClosedWindow]:
        """Count a firing as passed over. Return it if its place is to be freed."""
        self._states.count_suppressed(self._rule)
        return [msgspec.structs.replace(closed, refused=DROPPED)] if closed.limited else []

    # ------------------------------------------------------------ firings that waited

    def _end(self, end: TaskEnd) -> list[ClosedWindow]:
        """Note the outcome of a firing's task; return the firings that have room now."""
        self._count_failure(end)
        where = self._free(end.firing, end.index, end.of, end.at_ms)
        return [] if where is None else self.release_key(where, end.at_ms)

    def _free(self, firing: bytes, index: int, of: int, at_ms: int) -> StateKey | None:
        """Free the place of a firing, once its tasks have ended. None: it does not run."""
        place = StateKey(self._rule, PLACE, firing.hex())
        known = self._states.get(place)
        where = StateKey(self._rule, RunningLimiter.name(), known.key if isinstance(known, PlaceState) else "")
        state = self._states.get(where)
        ended = state.ended(firing, index, of) if isinstance(state, RunningState) else None
        if ended is None:
            return None
        self._put(where, ended, at_ms)
        if isinstance(known, PlaceState) and all(r.firing != firing for r in ended.running):
            self._states.set_state(place, PlaceState(self._offset, known.key, freed=True))
        return where

    def _count_failure(self, end: TaskEnd) -> None:
        limiter = self._options.of(FailuresLimiter.name())
        if not isinstance(limiter, FailuresLimiter):
            return
        where = StateKey(self._rule, limiter.name(), "")
        found = self._states.get(where)
        state = limiter.adapted(found) if isinstance(found, FailuresState) else FailuresState(-1)
        task = nth_id(end.firing, end.index)
        if (counted := state.after(task, end.status, limiter.failures, end.at_ms)) is not None:
            self._put(where, counted, end.at_ms)

    def release_key(self, where: StateKey, at_ms: int) -> list[ClosedWindow]:
        return self.release(where, self._options.of(where.operator), at_ms)

    def _drop_older(self, where: StateKey, state: LimiterState, at_ms: int) -> None:
        """Pass over all of a queue but the newest."""
        newest = self._states.release(where)[-1:]
        for _ in range(state.queued - len(newest)):
            self._states.count_suppressed(self._rule)
        self._set_queue(where, state, newest, at_ms)

    def _set_queue(self, where: StateKey, state: LimiterState, items: Sequence[BufferedEvent], at_ms: int) -> None:
        """Let these firings wait in a queue that was released."""
        for item in items:
            self._states.buffer(where, item)
        size = sum(len(item.row) for item in items)
        self._put(where, msgspec.structs.replace(state, queued=len(items), queued_bytes=size), at_ms)

    def _is_paused(self, where: StateKey, at_ms: int) -> bool:
        """Return True if a pause lets none of a later queue pass now."""
        for each in self._options.limiters:
            if each.PAUSES and RANK[each.name()] < RANK[where.operator]:
                state = self._state(StateKey(self._rule, each.name(), ""), each)
                if not each.has_room(state, at_ms):
                    return True
        return False

    def _hold(self, where: StateKey, at_ms: int, most: int) -> list[ClosedWindow]:
        """Let the first of a queue wait for the pause; return those without room."""
        state = self._states.get(where)
        if most <= 0 or not isinstance(state, LimiterState):
            return []
        items = self._states.release(where)
        self._set_queue(where, state, items[most:], at_ms)
        found: list[ClosedWindow] = []
        for item in items[:most]:
            closed = decode(ClosedWindow, item.row)
            if closed.limited:
                self._free(firing_id(closed), 0, 1, at_ms)
            found += self.admit(msgspec.structs.replace(closed, limited=False), at_ms)
        return found

    def release(
        self, where: StateKey, limiter: AnyLimiter | None, at_ms: int, most: int = RELEASED
    ) -> list[ClosedWindow]:
        """Return the firings of a queue that have room now. Without the limiter, all have.

        While the rule is paused, those of its other queues wait for the end of the pause.
        """
        if self._is_paused(where, at_ms):
            return self._hold(where, at_ms, most)
        found: list[ClosedWindow] = []
        before = self._states.get(where)
        if limiter is not None and isinstance(before, LimiterState) and (now := limiter.adapted(before)) != before:
            self._put(where, now, at_ms)
        if limiter is None and isinstance(before, PauseState) and before.latest:
            self._drop_older(where, before, at_ms)
        for _ in range(most):
            state = self._states.get(where)
            if not isinstance(state, LimiterState) or not state.queued:
                break
            if limiter is not None and not limiter.has_room(state, at_ms):
                break
            item = self._states.take(where)
            if item is None:
                self._put(where, msgspec.structs.replace(state, queued=0, queued_bytes=0), at_ms)
                break
            closed = decode(ClosedWindow, item.row)
            left = max(0, state.queued_bytes - len(item.row))
            state = msgspec.structs.replace(state, queued=state.queued - 1, queued_bytes=left)
            if limiter is None:
                self._put(where, state, at_ms)
            else:
                self._enter(where, limiter, state, closed, at_ms)
                closed = self._limited(closed, limiter)
            found += self.admit(closed, at_ms, RANK[where.operator])
        return found


def _item(closed: ClosedWindow, place: int) -> BufferedEvent:
    """Return a firing as an event of the buffer.

    A firing of a single event has its source and id, unless the event may be in several windows.
    """
    single = closed.events[0] if len(closed.events) == 1 and not closed.span_ms else None
    name = (single.source, single.id) if single is not None else ("", firing_id(closed).hex())
    return BufferedEvent(place, *name, encode(closed))
