"""The fold over ChangelogStates agrees with SqliteStates, through any crashes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.log.base import Record
from oncue.log.base import RecordBatch as LogBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.protocol.topics import MATCHES
from oncue.rules.operators.batch import BatchOperator
from oncue.rules.operators.catalog import operator_id
from oncue.rules.operators.dedupe import DedupeOperator
from oncue.rules.operators.records import ClosedWindow, MatchesRecord, Tick
from oncue.rules.stateful.changelog_states import ChangelogStates, records, states_in, wanted_keys
from oncue.rules.stateful.fold import MARGIN_MS, TICK_WINDOWS, StateKey, window_id_seed
from oncue.rules.stateful.pending_changes import event_key
from oncue.rules.stateful.sqlite_states import SqliteStates
from oncue.rules.testing.simulation import InMemoryStates
from tests.unit.rules.stateful.test_fold import folded, match, streams


def log_batch(stream: Sequence[MatchesRecord], first: int, last: int) -> LogBatch:
    found = [Record(encode(r)) for r in stream[first : last + 1]]
    return LogBatch(MATCHES, 0, range(first, last + 1), found)


class Worker:
    """A table and its changelog, a topic that only grows; after a death the table is read from it."""

    def __init__(self) -> None:
        self.table, self.changelog = ChangelogStates(), list[Record]()

    def step(self, batch: LogBatch, fate: str) -> list[ClosedWindow]:
        group, changes = self.table.fold([batch])
        assert not group.bad
        if fate == "killed before the commit":
            self.restart()
            return []
        self.changelog += records(changes)
        if fate == "killed after the commit":
            self.restart()
        else:
            self.table.apply(changes)
        return [closed for _, _, closed in group.closed]

    def restart(self) -> None:
        self.table = ChangelogStates()
        for record in self.changelog:
            self.table.apply_record(record.key, record.value)

    def compact(self) -> None:
        newest = {record.key: record for record in self.changelog}
        self.changelog = [r for r in self.changelog if newest[r.key] is r and r.value]


FATES = ["lives", "lives", "killed before the commit", "killed after the commit"]


def through_crashes(
    records: list[MatchesRecord], data: st.DataObject, *, compacts: bool = False
) -> tuple[Worker, list[ClosedWindow], list[ClosedWindow], object]:
    """Fold records in both stores, which die at random.

    Return (the worker, what fired on Kafka, what fired embedded, the embedded store's summary).
    """
    worker, on_kafka, embedded = Worker(), list[ClosedWindow](), list[ClosedWindow]()
    while (at := worker.table.progress.next) < len(records):
        first = data.draw(st.integers(max(0, at - 3), at))  # what is known already may come again
        last = data.draw(st.integers(at, len(records) - 1))
        on_kafka += worker.step(log_batch(records, first, last), data.draw(st.sampled_from(FATES)))
        if compacts and data.draw(st.booleans()):
            worker.compact()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStates(Path(folder) / "windows.db")
        while (at := store.parts.get(0, (0, 0))[0]) < len(records):
            last = data.draw(st.integers(at, len(records) - 1))
            group = store.fold_batches([log_batch(records, at, last)])
            killed = data.draw(st.booleans())
            if not killed:
                store.store(group)
                embedded += [closed for _, _, closed in group.closed]
        summary = store.summary()
        store.close()
    return worker, on_kafka, embedded, summary


@settings(max_examples=80, deadline=None)
@given(streams(), st.data())
def test_both_stores_fire_the_same_windows_through_crashes(records: list[MatchesRecord], data: st.DataObject) -> None:
    expected = folded(InMemoryStates(), enumerate(records))
    worker, on_kafka, embedded, summary = through_crashes(records, data, compacts=True)
    assert on_kafka == embedded == expected
    assert len({window_id_seed(c) for c in on_kafka}) == len(on_kafka)
    assert worker.table.summary() == summary


@settings(max_examples=60, deadline=None)
@given(streams())
def test_a_restored_table_is_the_same(records: list[MatchesRecord]) -> None:
    worker = Worker()
    worker.step(log_batch(records, 0, len(records) - 1), "lives")
    before = worker.table
    worker.restart()
    again = worker.table
    assert len(again) == len(before)
    assert (again.progress, again.summary(), again.next_due_ms()) == (
        before.progress,
        before.summary(),
        before.next_due_ms(),
    )
    assert again.open_specs() == before.open_specs()
    for at_ms in (0, 1_000, 2_000, 10_000):
        assert again.due(at_ms, 1_000, 5) == before.due(at_ms, 1_000, 5)


def test_due_windows_are_ordered_by_time_and_remain_due_until_closed() -> None:
    worker, spec = Worker(), (BatchOperator("${k}", wait_ms=100),)
    keys = [f"k{n % 10}" for n in range(100)]
    worker.step(log_batch([match(spec, n, n, [key]) for n, key in enumerate(keys)], 0, 99), "lives")
    first = worker.table.due(105, 1_000, 64)
    assert [due for due, _ in first] == list(range(100, 106))
    assert worker.table.due(105, 1_000, 64) == first
    assert worker.table.due(105, 1_000, 3) == first[:3]
    assert not worker.table.due(99, 1_000, 64)
    assert not worker.table.due(105, 90, 64)  # all of them have newer events
    assert worker.table.next_due_ms() == 100


def test_a_tick_closes_what_is_due_and_leaves_the_rest_to_the_next() -> None:
    worker, spec = Worker(), (BatchOperator("${k}", wait_ms=10),)
    many = TICK_WINDOWS + 5
    stream: list[MatchesRecord] = [match(spec, n, 0, [f"k{n:03}"]) for n in range(many)]
    stream += [Tick(VERSION, 10), Tick(VERSION, 10), Tick(VERSION, 10)]
    worker.step(log_batch(stream, 0, many - 1), "lives")
    assert len(worker.step(log_batch(stream, many, many), "lives")) == TICK_WINDOWS
    assert worker.table.next_due_ms() == 10
    assert len(worker.step(log_batch(stream, many + 1, many + 1), "lives")) == 5
    assert worker.table.next_due_ms() == 0
    assert worker.step(log_batch(stream, many + 2, many + 2), "lives") == []


def test_states_without_effect_are_deleted_in_the_changelog() -> None:
    worker = Worker()
    stream: list[MatchesRecord] = [
        match((DedupeOperator("${k}", 10),), 1, 100, ["a"]),
        match((DedupeOperator("${k}", 2 * MARGIN_MS),), 2, 100, ["c"]),
        match((BatchOperator("${k}", count=2),), 3, 100, ["d"]),
        Tick(VERSION, 100 + MARGIN_MS + 11),
        Tick(VERSION, 100 + MARGIN_MS + 12),
    ]
    worker.step(log_batch(stream, 0, 2), "lives")
    before = len(worker.table)
    worker.step(log_batch(stream, 3, 3), "killed before the commit")
    worker.step(log_batch(stream, 3, 4), "lives")
    assert len(worker.table) == before - 1
    worker.compact()
    worker.restart()
    assert len(worker.table) == before - 1
    assert sum(s.events for s in worker.table.summary().values()) == 1


def test_the_changelog_answers_for_single_keys() -> None:
    worker, spec = Worker(), BatchOperator("${k}", count=3)
    worker.step(log_batch([match((spec,), n, 5, ["a"]) for n in range(2)], 0, 1), "lives")
    where = StateKey("r", operator_id(spec, ()), "a")
    keys = wanted_keys([where], event_key("/s", "1"))
    said = {r.key: r.value for r in worker.changelog if r.key in keys}
    ((state, known),) = states_in(said, [where], event_key("/s", "1"))
    assert state is not None
    assert (state.applied, known) == (1, True)
    ((_, known),) = states_in(said, [where], event_key("/s", "9"))
    assert not known


YEAR_MS = 365 * 86_400_000


def test_windows_and_keys_from_a_clock_that_was_ahead_last_as_long_as_their_operators_say(tmp_path: Path) -> None:
    now, ahead = 1_700_000_000_000, 1_700_000_000_000 + YEAR_MS
    batch, dedupe = BatchOperator("${k}", wait_ms=5_000), DedupeOperator("${k}", 3_600_000)
    stream: list[MatchesRecord] = [match((batch,), 1, ahead, ["a"]), match((dedupe,), 2, ahead, ["b"], rule="d")]
    stream += [match((dedupe,), 3, now + 3_599_999, ["b"], rule="d"), Tick(VERSION, now + 5_000)]
    stream += [match((dedupe,), 4, now + 3_600_000, ["b"], rule="d")]
    later, last = log_batch(stream, 2, 3), log_batch(stream, 4, 4)
    worker, embedded = Worker(), SqliteStates(tmp_path / "windows.db")
    worker.step(log_batch(stream, 0, 1), "lives")
    embedded.store(embedded.fold_batches([log_batch(stream, 0, 1)]))

    assert worker.table.follow_clock(now) == embedded.follow_clock(now) == 2

    assert worker.table.follow_clock(now) == embedded.follow_clock(now) == 0
    assert worker.table.next_due_ms() == embedded.next_due_ms(0) == now + 5_000
    assert embedded.forget() == 0
    for records_, fired in ((later, ["wait"]), (last, ["first"])):
        group = embedded.fold_batches([records_])
        embedded.store(group)
        assert [closed.why for _, _, closed in group.closed] == fired
        assert [closed.why for closed in worker.step(records_, "lives")] == fired
    embedded.close()


def test_states_of_other_processes_whose_clocks_differ_a_little_stay(tmp_path: Path) -> None:
    stream: list[MatchesRecord] = [match((BatchOperator("${k}", wait_ms=5_000),), 1, 1_000_000, ["a"])]
    worker, embedded = Worker(), SqliteStates(tmp_path / "windows.db")
    worker.step(log_batch(stream, 0, 0), "lives")
    embedded.store(embedded.fold_batches([log_batch(stream, 0, 0)]))
    assert worker.table.follow_clock(950_000) == embedded.follow_clock(950_000) == 0
    assert worker.table.next_due_ms() == embedded.next_due_ms(0) == 1_005_000
    embedded.close()
