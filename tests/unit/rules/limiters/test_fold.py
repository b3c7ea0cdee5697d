"""Limits hold and lose nothing, through repeats and kills, in both stores of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, OK, VERSION
from oncue.rules.limiters.base import DROPPED, AnyLimiter, LimiterState
from oncue.rules.limiters.catalog import MEMBERS
from oncue.rules.limiters.failures import FailuresLimiter
from oncue.rules.limiters.pause import PauseLimiter, pause_limiter
from oncue.rules.limiters.rate import RateLimiter, RateState
from oncue.rules.limiters.running import RunningLimiter, RunningState
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.batch import BatchOperator
from oncue.rules.operators.dedupe import DedupeOperator
from oncue.rules.operators.records import BufferedEvent, ClosedWindow, Match, MatchesRecord, RuleLimits, TaskEnd, Tick
from oncue.rules.stateful.fold import StateKey
from oncue.rules.stateful.limits import RELEASED, firing_id, fold_record
from oncue.rules.testing.simulation import InMemoryStates
from tests.unit.rules.stateful.test_changelog_states import through_crashes
from tests.unit.rules.stateful.test_fold import match, same

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
LIMITS: list[tuple[AnyLimiter, ...]] = [
    (RunningLimiter("${k}", running=2),),
    (RunningLimiter("", running=1),),
    (RunningLimiter("${k}", running=1, queue=2),),
    (RunningLimiter("${k}", running=3, overlap="skip"),),
    (RunningLimiter("${k}", running=1, overlap="newest"),),
    (pause_limiter(latest=False),),
    (RateLimiter("${k}", count=2, per_ms=5),),
    (RunningLimiter("${k}", running=2), RateLimiter("", count=1, per_ms=2)),
    (RunningLimiter("", running=3), RateLimiter("${k}", 1, "drop", count=1, per_ms=4)),
]
OPERATORS: list[tuple[AnyOperator, ...]] = [
    (),
    (),
    (DedupeOperator("${k}", 3),),
    (BatchOperator("${k}", count=2, wait_ms=4),),
]


def limited(operators: Sequence[AnyOperator], limiters: Sequence[AnyLimiter], n: int, at_ms: int, key: str) -> Match:
    found = match(operators, n, at_ms, [key] * len(operators))
    keys = {limiter.name(): key for limiter in limiters if limiter.key}
    packed = tuple(msgspec.Raw(encode(limiter)) for limiter in limiters)
    event = msgspec.structs.replace(found.event, limit_keys=keys)
    return msgspec.structs.replace(found, event=event, limiters=packed)


def deployed(version: int, *limiters: AnyLimiter, at_ms: int = 0, retired: tuple[tuple[str, str], ...] = ()) -> Tick:
    packed = tuple(encode(limiter) for limiter in limiters)
    return Tick(VERSION, at_ms, retired, (RuleLimits("r", "f", version, packed),) if packed else ())


class History:
    """Records of one partition, as they follow from one another: outcomes from what has fired."""

    def __init__(self) -> None:
        self.records: list[MatchesRecord] = []
        self.fired: list[ClosedWindow] = []
        self.running: dict[bytes, ClosedWindow] = {}
        self.refused: list[ClosedWindow] = []
        self.states = InMemoryStates()
        self.most: Counter[str] = Counter()  # key -> running at once

    def append(self, record: MatchesRecord) -> None:
        found = fold_record(self.states, record, 0, len(self.records))
        self.records.append(record)
        self.fired += found
        for closed in found:
            if closed.refused:
                self.refused.append(closed)
            if closed.limited:
                assert firing_id(closed) not in self.running
                self.running[firing_id(closed)] = closed
        keys = Counter((c.events[-1].limit_keys or {}).get("limit", "") for c in self.running.values())
        for key, count in keys.items():
            self.most[key] = max(self.most[key], count)

    def end(self, firing: bytes, at_ms: int) -> None:
        del self.running[firing]
        self.append(TaskEnd(VERSION, "r", firing, 0, 1, OK, at_ms))

    def waiting(self) -> int:
        return sum(state.buffered() for state in self.states.states.values())


@st.composite
def histories(draw: st.DrawFn) -> tuple[History, list[AnyLimiter]]:
    """A history of a rule, whose limits are changed in the middle perhaps."""
    history, operators = History(), draw(st.sampled_from(OPERATORS))
    limits = draw(st.sampled_from(LIMITS))
    used, at_ms = list(limits), 1_000
    for n in range(draw(st.integers(1, 40))):
        at_ms += draw(st.sampled_from([0, 0, 1, 3]))
        what = draw(st.integers(0, 10))
        if what < 5 and (operators or limits):
            history.append(limited(operators, limits, n, at_ms, draw(st.sampled_from("ab"))))
        elif what < 8 and history.running:
            history.end(draw(st.sampled_from(sorted(history.running))), at_ms)
        elif what == 8:
            history.append(Tick(VERSION, at_ms))
        elif what == 10:
            paused = isinstance(next(iter(limits), None), PauseLimiter)
            limits = limits[1:] if paused else (pause_limiter(latest=False), *limits)
            history.append(deployed(1, *limits, at_ms=at_ms, retired=(("r", "mode"),) if paused else ()))
        elif n > 20 and limits and isinstance(limits[0], RunningLimiter):
            limits = (msgspec.structs.replace(limits[0], running=draw(st.integers(1, 3))), *limits[1:])
            used += limits
            packed = tuple(encode(limiter) for limiter in limits)
            history.append(Tick(VERSION, at_ms, (), (RuleLimits("r", "f", 1, packed),)))
    return history, used


def events_of(found: Iterable[ClosedWindow]) -> Counter[str]:
    return Counter(event.id for closed in found for event in closed.events)


@settings(SLOW)
@given(histories())
def test_never_more_run_than_the_limit_and_no_event_is_lost(made: tuple[History, list[AnyLimiter]]) -> None:
    history, used = made
    most = max([limiter.running for limiter in used if isinstance(limiter, RunningLimiter)], default=0)
    assert not most or all(count <= most for count in history.most.values())
    fired = events_of(closed for closed in history.fired if closed.refused != DROPPED)
    assert set(fired.values()) <= {1}
    queued = [
        msgspec.msgpack.decode(event.row, type=ClosedWindow) if where.operator in MEMBERS else None
        for where, held in history.states.buffers.items()
        for event in held.values()
    ]
    waiting = events_of(closed for closed in queued if closed)
    buffered = sum(len(held) for where, held in history.states.buffers.items() if where.operator not in MEMBERS)
    assert not set(waiting) & set(fired)
    given_ids = sum(isinstance(record, Match) for record in history.records)
    suppressed = history.states.suppressed  # a batch that is passed over counts as one
    assert len(fired) + len(waiting) + buffered + suppressed <= given_ids
    if not suppressed:
        assert len(fired) + len(waiting) + buffered == given_ids
    for where, state in history.states.states.items():
        if isinstance(state, LimiterState):
            assert state.queued == len(history.states.buffers.get(where, {}))


@settings(SLOW)
@given(histories())
def test_all_that_waits_runs_once_everything_ends(made: tuple[History, list[AnyLimiter]]) -> None:
    history, _ = made
    at_ms = 100_000
    for _ in range(3 * len(history.records)):
        at_ms += 10
        history.append(Tick(VERSION, at_ms, (("r", "mode"),)))
        if history.running:
            history.end(min(history.running), at_ms)
    assert (history.running, history.waiting()) == ({}, 0)
    assert all(not s.running for s in history.states.states.values() if isinstance(s, RunningState))


@settings(SLOW)
@given(histories(), st.data())
def test_repeated_records_change_nothing(made: tuple[History, list[AnyLimiter]], data: st.DataObject) -> None:
    records, states, found = made[0].records, InMemoryStates(), list[ClosedWindow]()
    for at, record in enumerate(records):
        found += fold_record(states, record, 0, at)
        if data.draw(st.booleans()):
            for back in range(data.draw(st.integers(0, at)), at + 1):
                assert fold_record(states, records[back], 0, back) == []
    assert found == made[0].fired
    assert same(states, made[0].states)


@settings(SLOW, max_examples=60)
@given(histories(), st.data())
def test_both_stores_fire_the_same_through_crashes(made: tuple[History, list[AnyLimiter]], data: st.DataObject) -> None:
    worker, on_kafka, embedded, summary = through_crashes(made[0].records, data)
    assert on_kafka == embedded == made[0].fired
    assert worker.table.summary() == summary


@settings(SLOW)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab")), max_size=40), st.integers(1, 3))
def test_no_more_pass_in_any_time_than_the_rate(events: list[tuple[int, str]], count: int) -> None:
    history, rate, at_ms = History(), RateLimiter("${k}", count=count, per_ms=7), 1_000
    passed: dict[str, list[int]] = {"a": [], "b": []}

    def note() -> None:
        for closed in history.fired[sum(map(len, passed.values())) :]:
            passed[(closed.events[0].limit_keys or {})["rate"]].append(at_ms)

    for n, (step_ms, key) in enumerate(events):
        at_ms += step_ms
        history.append(limited((), (rate,), n, at_ms, key))
        note()
    while history.waiting():
        at_ms = max(at_ms, history.states.next_due_ms())
        history.append(Tick(VERSION, at_ms))
        note()
    assert sum(map(len, passed.values())) == len(events)
    for times in passed.values():
        assert all(later - earlier >= 7 for earlier, later in zip(times, times[count:], strict=False))


def test_another_rate_holds_for_those_that_wait() -> None:
    history, slow = History(), RateLimiter("", count=1, per_ms=1_000)
    for n in range(3):
        history.append(limited((), (slow,), n, 0, "a"))
    assert history.states.next_due_ms() == 1_000
    faster = (encode(msgspec.structs.replace(slow, per_ms=100)),)
    history.append(Tick(VERSION, 50, (), (RuleLimits("r", "f", 2, faster),)))
    assert history.states.next_due_ms() == 100
    history.append(Tick(VERSION, 100))
    assert [c.events[0].id for c in history.fired] == ["0", "1"]
    state = history.states.states[StateKey("r", "rate", "")]
    assert isinstance(state, RateState)
    assert (state.times, state.due_ms(), state.moved(5).times) == ((100,), 200, (105,))


def test_what_waits_of_a_paused_rule_runs_later() -> None:
    history, paused = History(), pause_limiter(latest=False)
    for n in range(3):
        history.append(limited((), (paused,), n, 0, "a"))
    assert not history.fired
    history.append(Tick(VERSION, 1, (("r", "mode"),)))
    assert [c.events[0].id for c in history.fired] == ["0", "1", "2"]


def test_what_waits_of_a_paused_rule_passes_its_limit_later() -> None:
    history, limiters = History(), (pause_limiter(latest=False), RunningLimiter("", running=1))
    for n in range(3):
        history.append(limited((), limiters, n, 0, "a"))
    limits = RuleLimits("r", "f", 2, (encode(limiters[1]),))
    history.append(Tick(VERSION, 1, (("r", "mode"),), (limits,)))
    assert [c.events[0].id for c in history.fired] == ["0"]
    history.end(firing_id(history.fired[0]), 2)
    assert [c.events[0].id for c in history.fired] == ["0", "1"]


def ids(found: Iterable[ClosedWindow]) -> list[str]:
    return [closed.events[0].id for closed in found]


@pytest.mark.parametrize("key", ["", "${k}"])
def test_a_pause_holds_those_that_wait_for_a_limit(key: str) -> None:
    history, one, rate = History(), RunningLimiter(key, running=2), RateLimiter("", count=1, per_ms=10)
    for n in range(5):  # 0 runs, 1 waits for the rate, 2 to 4 for the limit
        history.append(limited((), (one, rate), n, 0, "a"))
    assert ids(history.fired) == ["0"]

    history.append(deployed(2, pause_limiter(latest=False), one, rate))
    history.append(limited((), (pause_limiter(latest=False), one, rate), 5, 3, "a"))
    history.end(firing_id(history.fired[0]), 4)
    for at_ms in range(5, 100, 5):
        history.append(Tick(VERSION, at_ms))
    assert ids(history.fired) == ["0"]
    assert (history.waiting(), history.states.next_due_ms()) == (5, 0)

    history.append(deployed(3, one, rate, at_ms=100, retired=(("r", "mode"),)))
    for at_ms in range(110, 200, 5):
        while history.running:
            history.end(min(history.running), at_ms)
        history.append(Tick(VERSION, at_ms))
    assert (ids(history.fired), history.waiting()) == (["0", "1", "2", "3", "4", "5"], 0)
    assert history.most == {("a" if key else ""): 1}


def test_of_those_that_wait_for_a_limit_the_latest_runs_after_a_pause() -> None:
    history, one = History(), RunningLimiter("", running=1)
    for n in range(4):
        history.append(limited((), (one,), n, 0, "a"))
    history.append(deployed(2, pause_limiter(latest=True), one))
    history.end(firing_id(history.fired[0]), 3)
    history.append(deployed(3, one, retired=(("r", "mode"),)))
    assert (ids(history.fired), history.states.suppressed, history.waiting()) == (["0", "3"], 2, 0)


def test_after_failures_what_waits_for_a_limit_or_rate_waits_for_a_person() -> None:
    failures, one, rate = FailuresLimiter("", failures=1), RunningLimiter("", running=2), RateLimiter("", per_ms=10)
    history = History()
    for n in range(4):  # 0 runs, 1 waits for the rate, 2 and 3 for the limit
        history.append(limited((), (failures, one, rate), n, 1, "a"))
    history.running.clear()
    history.append(TaskEnd(VERSION, "r", firing_id(history.fired[0]), 0, 1, ERROR, 5))
    for at_ms in range(10, 100, 10):
        history.append(Tick(VERSION, at_ms))
    assert (ids(history.fired), history.waiting(), history.states.next_due_ms()) == (["0"], 3, 0)

    history.append(deployed(2, failures.resumed(100), one, rate, at_ms=100))
    for at_ms in range(110, 200, 10):
        while history.running:
            history.end(min(history.running), at_ms)
        history.append(Tick(VERSION, at_ms))
    assert (sorted(ids(history.fired)), history.waiting()) == (["0", "1", "2", "3"], 0)


def test_all_that_waits_after_failures_runs_later() -> None:
    history, failures = History(), FailuresLimiter("", queue=RELEASED + 9, failures=1)
    history.append(limited((), (failures,), 0, 1, "a"))
    history.append(TaskEnd(VERSION, "r", firing_id(history.fired[0]), 0, 1, ERROR, 5))
    for n in range(1, RELEASED + 9):
        history.append(limited((), (failures,), n, 6, "a"))
    assert (len(history.fired), history.states.next_due_ms()) == (1, 0)
    history.append(deployed(2, failures.resumed(100), at_ms=100))
    while at_ms := history.states.next_due_ms():
        history.append(Tick(VERSION, 100 + at_ms))
    assert (len(history.fired), history.waiting()) == (RELEASED + 9, 0)


def test_what_waits_of_a_paused_rule_runs_once_it_has_no_limits() -> None:
    history, limiters = History(), (pause_limiter(latest=False), RunningLimiter("", running=1))
    for n in range(3):
        history.append(limited((), limiters, n, 0, "a"))
    for at_ms, name in enumerate(["mode", "limit", "mode", "limit"]):
        history.append(Tick(VERSION, at_ms, (("r", name),)))
    assert (ids(history.fired), history.waiting()) == (["0", "1", "2"], 0)


def test_only_the_latest_of_a_paused_rule_runs_later() -> None:
    history, latest = History(), pause_limiter(latest=True)
    for n in range(3):  # the rule says so later
        history.append(limited((), (pause_limiter(latest=False),), n, 0, "a"))
    history.append(Tick(VERSION, 1, (), (RuleLimits("r", "f", 2, (encode(latest),)),)))
    history.append(Tick(VERSION, 1, (("r", "mode"),)))
    assert [c.events[0].id for c in history.fired] == ["2"]
    for n in range(3, 6):
        history.append(limited((), (latest,), n, 0, "a"))
    history.append(Tick(VERSION, 1, (("r", "mode"),)))
    assert [c.events[0].id for c in history.fired] == ["2", "5"]
    assert history.states.suppressed == 4


def test_a_higher_limit_lets_those_pass_that_wait() -> None:
    history, two = History(), RunningLimiter("", running=2)
    for n in range(5):
        history.append(limited((), (two,), n, 0, "a"))
    assert [e for c in history.fired for e in (c.events[0].id,)] == ["0", "1"]
    four = (encode(msgspec.structs.replace(two, running=4)),)
    history.append(Tick(VERSION, 1, (), (RuleLimits("r", "f", 2, four),)))
    assert [c.events[0].id for c in history.fired] == ["0", "1", "2", "3"]
    # An event that was matched under the former version changes nothing.
    history.append(limited((), (two,), 9, 0, "a"))
    history.end(firing_id(history.fired[0]), 2)
    assert [c.events[0].id for c in history.fired] == ["0", "1", "2", "3", "4"]


def test_without_the_limit_all_that_wait_fire_and_what_runs_is_counted_on() -> None:
    history, one = History(), RunningLimiter("", running=1)
    for n in range(3):
        history.append(limited((), (one,), n, 0, "a"))
    history.append(Tick(VERSION, 1, (("r", "limit"),)))
    assert [c.events[0].id for c in history.fired] == ["0", "1", "2"]
    state = history.states.states[StateKey("r", "limit", "")]
    assert isinstance(state, RunningState)
    assert len(state.running) == 1


def test_a_firing_of_two_functions_runs_until_both_have_ended() -> None:
    history, one = History(), RunningLimiter("", running=1)
    for n in range(2):
        history.append(limited((), (one,), n, 0, "a"))
    firing = firing_id(history.fired[0])
    for index in (1, 1, 0):
        assert len(history.fired) == 1
        history.append(TaskEnd(VERSION, "r", firing, index, 2, OK, 1))
    assert len(history.fired) == 2


def test_a_firing_that_is_retried_by_hand_passes_the_limit_too() -> None:
    history, one = History(), RunningLimiter("", running=1, queue=1)
    for n in range(3):
        history.append(limited((), (one,), n, 0, "a"))
    (refused,) = [c for c in history.fired if c.refused]
    history.append(Tick(VERSION, 1))
    history.end(firing_id(history.fired[0]), 2)
    history.append(refused)
    assert history.waiting() == 1
    history.end(firing_id(history.fired[-1]), 3)
    assert history.fired[-1].events == refused.events
    assert (history.fired[-1].refused, history.fired[-1].limited) == ("", True)


def test_a_place_of_a_key_is_forgotten_after_it_is_freed() -> None:
    history = History()
    history.append(limited((), (RunningLimiter("${k}", running=1),), 1, 5, "a"))
    firing = firing_id(history.fired[0])
    where = StateKey("r", "place", firing.hex())
    assert history.states.states[where].forget_ms() == 0
    history.end(firing, 6)
    assert history.states.states[where].forget_ms() == 1
    assert history.states.states[StateKey("r", "limit", "a")].forget_ms() == 6


def test_an_event_of_before_the_limits_passes() -> None:
    event = BufferedEvent(3, "/s", "1", b"\x90")
    old = ClosedWindow(VERSION, "r", "f", 1, "", (), 0, 3, 4, "first", (event,))
    assert fold_record(InMemoryStates(), old, 0, 9) == [old]


def test_a_rule_without_limits_has_no_state_of_them() -> None:
    states = InMemoryStates()
    assert fold_record(states, Tick(VERSION, 1, (("r", "batch"),)), 0, 0) == []
    assert states.states == {}
