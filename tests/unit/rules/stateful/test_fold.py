"""Properties of the fold of stateful rules, with states in memory and in SQLite."""

from __future__ import annotations

import contextlib
import copy
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.log.base import Record
from oncue.log.base import RecordBatch as LogBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.rules.operators.absent import AbsentOperator
from oncue.rules.operators.after import AfterOperator
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.batch import WINDOW_BYTES, WINDOW_EVENTS, BatchOperator, BatchState
from oncue.rules.operators.catalog import keyed_operator, operator_id, resolve
from oncue.rules.operators.count import CountOperator, CountState
from oncue.rules.operators.debounce import DebounceOperator
from oncue.rules.operators.dedupe import DedupeOperator
from oncue.rules.operators.join import JoinOperator
from oncue.rules.operators.order_by import OrderOperator, OrderState
from oncue.rules.operators.records import BufferedEvent, ClosedWindow, Match, MatchesRecord, Tick
from oncue.rules.operators.sample import SampleOperator
from oncue.rules.operators.sequence import SequenceOperator
from oncue.rules.operators.throttle import ThrottleOperator
from oncue.rules.operators.window import WindowOperator
from oncue.rules.operators.window_state import WindowState
from oncue.rules.stateful.fold import StateKey, fold, window_id_seed
from oncue.rules.stateful.sqlite_states import SqliteStates
from oncue.rules.testing.simulation import InMemoryStates

NAMES = ("0", "1", "2")
SPECS: list[tuple[AnyOperator, ...]] = [
    (BatchOperator("${k}", count=3),),
    (BatchOperator("${k}", size_bytes=25),),
    (BatchOperator("${k}", wait_ms=30),),
    (BatchOperator("${k}", count=4, size_bytes=40, wait_ms=20),),
    (DedupeOperator("${k}", 25),),
    (DedupeOperator("${k}", 25), BatchOperator("", count=3, wait_ms=50)),
    (ThrottleOperator("${k}", 25, 2),),
    (SampleOperator("${k}", first=2, every=2, ttl_ms=30),),
    (SampleOperator("${k}", ttl_ms=30, select=2, number=4),),
    (DebounceOperator("${k}", 10, 25),),
    (CountOperator("${k}", 3, 30),),
    (AfterOperator("${k}", 20),),
    (OrderOperator("${k}", "data.n"),),
    (OrderOperator("", "data.n", "skip", 20, 0),),
    (OrderOperator("", "data.n", "dead", 15),),
    (WindowOperator("${k}", "tumbling", 30, 30),),
    (WindowOperator("${k}", "session", 40, 0, 13),),
    (WindowOperator("${k}", "sliding", 30, 10),),
    (WindowOperator("${k}", "tumbling", 7, 7, 0, 5, "data.t"),),
    (WindowOperator("${k}", "session", 0, 0, 4, 12, "data.t"),),
    (WindowOperator("", "sliding", 12, 4, 0, 6, "data.t"),),
    (JoinOperator("${k}", 30, count=3),),
    (JoinOperator("${k}", 30, "fire", by="${n}", list="${ns}"),),
    (JoinOperator("${k}", 40, names=NAMES),),
    (SequenceOperator("${k}", 40, NAMES),),
    (AbsentOperator("${k}", 30),),
    (ThrottleOperator("${k}", 5), JoinOperator("${k}", 60, "drop", by="${n}", list="${ns}")),
    (ThrottleOperator("${k}", 12), SampleOperator("", every=2), CountOperator("${k}", 2, 40)),
]


def match(
    specs: Sequence[AnyOperator],
    n: int,
    at_ms: int,
    keys: Sequence[str],
    size: int = 10,
    row: bytes = b"\x90",
    rule: str = "r",
) -> Match:
    stages = tuple(keyed_operator(spec, key if spec.key else "") for spec, key in zip(specs, keys, strict=True))
    event, expected = BufferedEvent(-1, "/s", str(n), row, size), ()
    last = specs[-1] if specs else None
    if isinstance(last, SequenceOperator) or (isinstance(last, JoinOperator) and (last.by or last.names)):
        event = msgspec.structs.replace(event, name=str(n % 3))
        expected = NAMES if n % 2 and isinstance(last, JoinOperator) and last.by else ()
    if isinstance(last, AbsentOperator):
        event = msgspec.structs.replace(event, name=("after", "expect", "after+expect")[n % 3])
    return Match(VERSION, rule, "f", 1, at_ms, stages, (), event, expected)


@st.composite
def streams(draw: st.DrawFn, doubles: bool = True) -> list[MatchesRecord]:
    """Records of one partition: matches of a rule, its spec changed in the middle perhaps, and ticks."""
    specs = draw(st.lists(st.sampled_from(SPECS), min_size=1, max_size=2))
    found: list[MatchesRecord] = []
    at_ms = 1_000
    for n in range(draw(st.integers(1, 40))):
        at_ms += draw(st.sampled_from([0, 0, 1, 5, 12, 40]))
        chosen = specs[0] if n < 20 else specs[-1]
        if draw(st.integers(0, 7)) == 0:
            gone = specs[0] if n >= 20 and specs[0] != specs[-1] else ()
            retired = tuple(("r", operator_id(s, ())) for s in gone if s.BUFFERS)
            found.append(Tick(VERSION, at_ms + draw(st.integers(0, 60)), retired))
        else:
            number = draw(st.integers(0, n)) if doubles else n
            keys = [draw(st.sampled_from("abc")) for _ in chosen]
            found.append(match(chosen, number, at_ms, keys, draw(st.integers(0, 30))))
    return found


def folded(states: InMemoryStates, records: Iterable[tuple[int, MatchesRecord]]) -> list[ClosedWindow]:
    return [closed for offset, record in records for closed in fold(states, record, 0, offset)]


def same(a: InMemoryStates, b: InMemoryStates) -> bool:
    return a.states == b.states and {w: h for w, h in a.buffers.items() if h} == {
        w: h for w, h in b.buffers.items() if h
    }


@given(streams(), st.data())
def test_repeated_records_change_nothing(records: list[MatchesRecord], data: st.DataObject) -> None:
    """A reader that goes back, any time and any way, while the states stay: the same windows, and the same states."""
    numbered = list(enumerate(records))
    once, often = InMemoryStates(), InMemoryStates()
    expected = folded(once, numbered)
    found: list[ClosedWindow] = []
    for at, pair in enumerate(numbered):
        found += folded(often, [pair])
        if data.draw(st.booleans()):
            back = data.draw(st.integers(0, at))
            again = numbered[back : at + 1]
            assert folded(often, again) == []
    assert found == expected
    assert same(once, often)


@given(streams(), st.data())
def test_a_replay_from_a_stored_state_fires_the_same_windows_with_the_same_ids(
    records: list[MatchesRecord], data: st.DataObject
) -> None:
    numbered = list(enumerate(records))
    stored_at = data.draw(st.integers(0, len(numbered)))
    back_to = data.draw(st.integers(0, stored_at))
    states = InMemoryStates()
    before = folded(states, numbered[:stored_at])
    restored = copy.deepcopy(states)
    expected = before + folded(states, numbered[stored_at:])
    found = before + folded(restored, numbered[back_to:])
    assert [window_id_seed(c) for c in found] == [window_id_seed(c) for c in expected]
    assert found == expected
    assert len({window_id_seed(c) for c in found}) == len(found)
    # Without any state: all over again, and the same ids.
    assert folded(InMemoryStates(), numbered) == expected


def _slides(packed: bytes) -> bool:
    operator = resolve(bytes(packed), ()).operator
    return isinstance(operator, WindowOperator) and operator.kind == "sliding"


@given(streams(doubles=False))
def test_no_event_is_in_two_batches_and_none_is_lost(records: list[MatchesRecord]) -> None:
    states = InMemoryStates()
    closed = folded(states, enumerate(records))
    fired = Counter(held.id for c in closed for held in c.events)
    waiting = Counter(id for held in states.buffers.values() for _, id in held)
    if any(_slides(s.operator) for r in records if isinstance(r, Match) for s in r.stages):
        assert max(fired.values(), default=0) <= 3  # in each of the windows that overlap
    else:
        assert set(fired.values()) <= {1}
        assert not set(fired) & set(waiting)
    given_ids = {r.event.id for r in records if isinstance(r, Match)}
    if all(
        isinstance(resolve(bytes(s.operator), ()).operator, BatchOperator)
        for r in records
        if isinstance(r, Match)
        for s in r.stages
    ):
        assert set(fired) | set(waiting) == given_ids
    for where, state in states.states.items():
        if isinstance(state, BatchState | CountState | WindowState | OrderState):
            assert state.buffered() == len(states.buffers.get(where, {}))


@given(streams())
def test_a_window_keeps_its_limits_and_its_order(records: list[MatchesRecord]) -> None:
    for c in folded(InMemoryStates(), enumerate(records)):
        assert list(c.events) == sorted(c.events, key=lambda h: h.place)
        assert len({(h.source, h.id) for h in c.events}) == len(c.events) > 0
        assert c.opening == c.events[0].place


@settings(max_examples=60, deadline=None)  # it waits for a disk
@given(streams(), st.data())
def test_the_file_fires_the_same_windows_through_crashes(records: list[MatchesRecord], data: st.DataObject) -> None:
    """Groups of any size; one that was not stored comes again, as after a crash."""
    expected = folded(InMemoryStates(), enumerate(records))
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStates(Path(folder) / "windows.db")
        found: list[ClosedWindow] = []
        try:
            while (at := store.parts.get(0, (0, 0))[0]) < len(records):
                first = data.draw(st.integers(max(0, at - 3), at))  # what is known already may come again
                last = data.draw(st.integers(at, len(records) - 1))
                part = [Record(encode(r)) for r in records[first : last + 1]]
                group = store.fold_batches([LogBatch("oncue.matches", 0, range(first, last + 1), part)])
                assert not group.bad
                if data.draw(st.integers(0, 3)) == 3:  # killed before it was stored
                    store.close()
                    store = SqliteStates(Path(folder) / "windows.db")
                    continue
                store.store(group)
                found += [c for _, _, c in group.closed]
        finally:
            store.close()
        assert found == expected


def test_the_first_of_a_key_passes_and_the_time_counts_from_it() -> None:
    states, spec = InMemoryStates(), (DedupeOperator("${k}", 100),)
    times = [(0, "a"), (50, "a"), (99, "a"), (99, "b"), (100, "a"), (199, "a"), (200, "a")]
    closed = folded(states, ((n, match(spec, n, at, [key])) for n, (at, key) in enumerate(times)))
    assert [(c.opened_ms, c.key, c.why) for c in closed] == [
        (0, "a", "first"), (99, "b", "first"), (100, "a", "first"), (200, "a", "first"),
    ]  # fmt: skip


def test_a_match_after_the_wait_opens_the_next_window_without_a_tick() -> None:
    states, spec = InMemoryStates(), (BatchOperator("", count=3, wait_ms=30),)
    closed = folded(states, ((n, match(spec, n, at, [""])) for n, at in enumerate([0, 29, 30, 31])))
    assert [(c.why, [h.id for h in c.events]) for c in closed] == [("wait", ["0", "1"])]
    closed = folded(states, [(4, match(spec, 4, 32, [""]))])
    assert [(c.why, c.opening, [h.id for h in c.events]) for c in closed] == [("count", 2, ["2", "3", "4"])]


def test_bytes_close_the_window_that_reaches_them() -> None:
    spec = (BatchOperator("", size_bytes=100),)
    closed = folded(InMemoryStates(), ((n, match(spec, n, 0, [""], size)) for n, size in enumerate([60, 39, 1, 200])))
    assert [(c.why, [h.id for h in c.events]) for c in closed] == [("bytes", ["0", "1", "2"]), ("bytes", ["3"])]


def test_a_window_that_is_full_closes_early_and_fits_into_a_record() -> None:
    spec = (BatchOperator("", wait_ms=1_000),)
    large = b"\xc5\xff\xff" + b"x" * 0xFFFF
    closed = folded(InMemoryStates(), ((n, match(spec, n, 0, [""], row=large)) for n in range(40)))
    assert {c.why for c in closed} == {"full"}
    assert all(WINDOW_BYTES - 70_000 < len(encode(c)) < WINDOW_BYTES + 1_000 for c in closed)
    closed = folded(InMemoryStates(), ((n, match(spec, n, 0, [""])) for n in range(WINDOW_EVENTS + 1)))
    assert [(c.why, len(c.events)) for c in closed] == [("full", WINDOW_EVENTS)]


def test_windows_of_a_removed_operator_fire_as_they_are() -> None:
    states = InMemoryStates()
    old, new = BatchOperator("", count=10), BatchOperator("", count=5)
    folded(states, ((n, match((old,), n, 0, [""])) for n in range(3)))
    folded(states, ((n, match((new,), n, 0, [""])) for n in range(3, 5)))
    closed = folded(states, [(5, Tick(VERSION, 1, (("r", operator_id(old, ())),)))])
    assert [(c.why, [h.id for h in c.events]) for c in closed] == [("changed", ["0", "1", "2"])]
    opened = states.states[StateKey("r", operator_id(new, ()), "")]
    assert isinstance(opened, BatchState)
    assert opened == BatchState(
        4, count=2, size_bytes=20, buffered_bytes=opened.buffered_bytes, opening=3, label="f", version=1
    )


def test_an_event_that_waits_keeps_its_time_when_the_rule_changes() -> None:
    old, new = AfterOperator("", 100), AfterOperator("", 500)
    assert operator_id(old, ("data.a",)) == operator_id(new, ("data.b",))
    states = InMemoryStates()
    folded(states, [(0, match((old,), 0, 1_000, ["a"]))])
    folded(states, [(1, match((new,), 1, 1_000, ["b"]))])
    assert not folded(states, [(2, Tick(VERSION, 1_099))])
    assert [(c.why, c.opened_ms) for c in folded(states, [(3, Tick(VERSION, 1_100))])] == [("after", 1_000)]


def grouped(store: SqliteStates, first: int, *records: MatchesRecord, part: int = 0) -> list[ClosedWindow]:
    """Fold and store one group; what fires."""
    batch = LogBatch("oncue.matches", part, range(first, first + len(records)), [Record(encode(r)) for r in records])
    group = store.fold_batches([batch])
    assert not group.bad
    store.store(group)
    return [closed for _, _, closed in group.closed]


def test_an_event_is_known_only_while_its_window_is_open(tmp_path: Path) -> None:
    """Also where the window was closed, and the event told again, between two looks at the file."""
    store, spec = SqliteStates(tmp_path / "windows.db"), (BatchOperator("", count=3),)
    assert not grouped(store, 0, match(spec, 1, 0, [""]), match(spec, 2, 0, [""]), match(spec, 1, 0, [""]))
    (closed,) = grouped(store, 3, match(spec, 3, 0, [""]), match(spec, 1, 0, [""]), match(spec, 2, 0, [""]))
    assert [h.id for h in closed.events] == ["1", "2", "3"]
    (closed,) = grouped(store, 6, match(spec, 9, 0, [""]))
    assert [h.id for h in closed.events] == ["1", "2", "9"]
    # One that is tried again fires, once.
    assert grouped(store, 7, closed) == [closed]
    assert grouped(store, 7, closed) == []
    store.close()


def test_states_without_effect_are_deleted(tmp_path: Path) -> None:
    store, hour = SqliteStates(tmp_path / "windows.db"), 3_600_000
    grouped(
        store,
        0,
        match((DedupeOperator("${k}", 10),), 1, 100, ["a"]),
        match((BatchOperator("${k}", count=1),), 2, 100, ["b"]),
    )
    grouped(
        store,
        2,
        match((DedupeOperator("${k}", 2 * hour),), 3, 100, ["c"]),
        match((BatchOperator("${k}", count=2),), 4, 100, ["d"]),
    )
    assert store.forget() == 0
    grouped(store, 4, Tick(VERSION, 100 + hour + 11))
    assert store.forget() == 2
    assert store.forget() == 0
    grouped(store, 5, Tick(VERSION, 100 + 3 * hour + 1))
    assert store.forget() == 1
    assert sum(s.events for s in store.summary().values()) == 1
    store.close()


def test_a_key_starts_anew_in_another_partition_whose_offsets_are_others(tmp_path: Path) -> None:
    """StateKey a rule gets another operator, its matches may go to another partition."""
    store, once, three = (
        SqliteStates(tmp_path / "windows.db"),
        (DedupeOperator("${k}", 25),),
        (BatchOperator("${k}", count=3),),
    )
    assert len(grouped(store, 1_000, match(once, 1, 1_000, ["a"]), match(three, 2, 1_000, ["a"]))) == 1
    assert len(grouped(store, 0, match(once, 3, 1_010, ["a"]), part=1)) == 1
    grouped(store, 1, match(three, 4, 1_010, ["a"]), match(three, 5, 1_010, ["a"]), part=1)
    (closed,) = grouped(store, 3, match(three, 6, 1_010, ["a"]), part=1)
    assert [h.id for h in closed.events] == ["4", "5", "6"]
    where = StateKey("r", operator_id(three[0], ()), "a")
    assert [known for part in (0, 1) for _, known in store.states_of(part, [where], "/s", "2")] == [True, False]
    store.close()


def test_a_file_of_version_1_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "windows.db"
    store, spec = SqliteStates(path), (BatchOperator("${k}", count=3),)
    grouped(store, 0, match(spec, 1, 0, ["a"]), match(spec, 2, 0, ["a"]), part=2)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:  # as it was then
        old = blake2b("\0".join(StateKey("r", operator_id(spec[0], ()), "a")).encode(), digest_size=16).hexdigest()
        for table in ("state", "item"):
            db.execute(f"UPDATE {table} SET id = ?", (old,))
        db.execute("PRAGMA user_version=1")
    store = SqliteStates(path)
    (closed,) = grouped(store, 2, match(spec, 3, 0, ["a"]), part=2)
    assert [h.id for h in closed.events] == ["1", "2", "3"]
    store.close()
