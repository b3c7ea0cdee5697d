"""The view equals the fold, for any order, repetition and grouping of records."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, OK, VERSION, Ended, ResultFrame, TaskFrame
from oncue.protocol.topics import RESULTS
from oncue.task_lifecycle import State, TaskState
from oncue.view import ClosedTask, TaskFilter, View, lists, queries
from oncue.view.projector import Applied, Projector
from oncue.view.queries import TaskQueries
from oncue.view.schema import open_writer
from tests.unit.task_histories import (
    CALLS,
    ENDPOINT,
    IDS,
    PLAIN,
    RETRIED,
    TASKS,
    Entry,
    fold,
    histories,
    interleaved,
    task_of,
)


class ProjectorHarness:
    """A projector and task queries on one database, in this thread."""

    def __init__(self, path: Path) -> None:
        self.db = open_writer(path)
        self.projector = Projector(self.db)
        self.task_queries = TaskQueries()
        self.closed: list[ClosedTask] = []

    def apply(self, batches: Sequence[RecordBatch]) -> Applied:
        applied = self.projector.apply(batches)
        self.closed += applied.closed
        return applied

    def state(self, task_id: bytes) -> TaskState | None:
        return self.task_queries.task(self.db, task_id)


@contextlib.contextmanager
def projector_harness() -> Iterator[ProjectorHarness]:
    with tempfile.TemporaryDirectory() as folder:
        made = ProjectorHarness(Path(folder) / "view.db")
        try:
            yield made
        finally:
            made.db.close()


def batches_of(entries: Sequence[Entry]) -> list[RecordBatch]:
    """Return one batch for each record, with the offsets of its topic."""
    ends: dict[str, int] = {}
    made = []
    for topic, message in entries:
        offset = ends.get(topic, 0)
        ends[topic] = offset + 1
        made.append(RecordBatch(topic, 0, (offset,), (Record(encode(message)),)))
    return made


def grouped(batches: Sequence[RecordBatch], cuts: Sequence[int]) -> list[list[RecordBatch]]:
    edges = [0, *sorted(cuts), len(batches)]
    return [list(batches[a:b]) for a, b in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_view_equals_the_fold(data: st.DataObject) -> None:
    """Records are repeated at new offsets and applied in random groups."""
    entries = data.draw(histories().flatmap(interleaved))
    if entries and data.draw(st.booleans()):
        first = data.draw(st.integers(0, len(entries) - 1))
        entries.insert(data.draw(st.integers(first, len(entries))), entries[first])
    batches = batches_of(entries)
    cuts = data.draw(st.lists(st.integers(0, len(batches)), max_size=4))
    wanted = fold(entries)
    with projector_harness() as made:
        for group in grouped(batches, cuts):
            made.apply(group)
        check(made, wanted)
        for group in grouped(batches, cuts):  # everything again, at the same offsets
            assert made.apply(group).closed == []
        check(made, wanted)


def check(made: ProjectorHarness, wanted: dict[bytes, TaskState]) -> None:
    db, task_queries = made.db, made.task_queries
    for task_id in IDS:
        assert made.state(task_id) == wanted.get(task_id)
    closed = {i: s for i, s in wanted.items() if s.state.closed}
    assert sorted(c.id for c in made.closed) == sorted(closed)  # each reported once
    closed_by_id = {c.id: c for c in made.closed}
    outcomes = {c.id: c for c in task_queries.outcomes(db, IDS)}
    assert outcomes.keys() == closed.keys()
    for task_id, s in closed.items():
        a = s.closing
        assert a is not None
        for found in (closed_by_id[task_id], outcomes[task_id]):
            e = found.ended
            assert (found.state, e.attempt, e.status, e.value, e.output) == (s.state, a.n, a.status, a.value, a.output)
    with_call = {i: s for i, s in wanted.items() if s.call is not None}
    assert task_queries.states(db, IDS) == {i: (s.state, ENDPOINT) for i, s in with_call.items()}
    open_ = {i: s for i, s in wanted.items() if s.known and not s.state.closed}
    rows = task_queries.open_tasks(db, ENDPOINT, -1, 100)
    assert [r[0] for r in rows] == sorted({r[0] for r in rows})
    assert {r[5].id: r[1:5] for r in rows} == {
        i: (s.call, s.accepted_us, s.attempt, s.due_us) for i, s in open_.items()
    }
    assert all(r[5] == task_of(r[5].id) for r in rows)
    assert queries.open_counts(db) == ({ENDPOINT: len(open_)} if open_ else {})
    assert {i for i, _ in queries.cancels(db, 100)} == {i for i, s in open_.items() if s.cancel_us}
    check_lists(made, with_call)


def check_lists(made: ProjectorHarness, wanted: dict[bytes, TaskState]) -> None:
    def listed(**given: object) -> set[bytes]:
        found: list[TaskState] = []
        cursor: str | None = ""
        while cursor is not None:
            page, cursor = lists.page(made.db, TaskFilter(cursor=cursor, limit=2, **given), made.task_queries.calls)  # type: ignore[arg-type]
            found += page
        assert len({s.id for s in found}) == len(found)
        assert all(s == wanted[s.id] for s in found)
        return {s.id for s in found}

    assert listed() == set(wanted)
    assert listed(owner="bob") == {i for i, s in wanted.items() if s.call and s.call.owner == "bob"}
    assert listed(rule="r") == listed(owner="bob")
    assert listed(function="plain") == listed(function="f" * 64) == {i for i in wanted if CALLS[i] is PLAIN}
    assert listed(endpoint=ENDPOINT) == set(wanted)
    assert listed(endpoint="nowhere") == set()
    assert listed(state="closed") == {i for i, s in wanted.items() if s.state.closed}
    assert listed(state="failed", owner="bob") == {
        i for i, s in wanted.items() if s.state is State.FAILED and s.call and s.call.owner == "bob"
    }
    assert listed(event=("src", "e0")) == {i for i, s in wanted.items() if s.event == ("src", "e0")}
    known = {i for i, s in wanted.items() if s.known}
    opened = {i for i in known if not wanted[i].state.closed}
    assert listed(state="open") & known == opened
    assert listed(state="open", endpoint=ENDPOINT) & known == opened


def frame(call: object, ids: Sequence[bytes], at: int = 1_000) -> TaskFrame:
    return TaskFrame(VERSION, call, at, [task_of(i) for i in ids])  # type: ignore[arg-type]


def results(call: object, *ended: Ended) -> ResultFrame:
    return ResultFrame(VERSION, call, ENDPOINT, 1_000, list(ended))  # type: ignore[arg-type]


def many(count: int, first: int = 0) -> list[bytes]:
    return [(first + i).to_bytes(16, "big") for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1_000])
def test_task_frames_of_any_size(count: int) -> None:
    ids = many(count)
    big = TaskFrame(VERSION, PLAIN, 5, [msgspec.structs.replace(task_of(IDS[0]), id=i, event=None) for i in ids])
    ends = results(PLAIN, *[Ended(i, 1, OK, 6, 7, b"m\x01") for i in ids])
    with projector_harness() as made:
        made.apply(batches_of([(TASKS, big)]))
        rows = made.task_queries.open_tasks(made.db, ENDPOINT, -1, 10_000)
        assert [r[5].id for r in rows] == ids
        assert [r[0] for r in rows] == list(range(count))
        made.apply(batches_of([(RESULTS, ends)]))
        assert [c.id for c in made.closed] == ids
        assert made.task_queries.open_tasks(made.db, ENDPOINT, -1, 10) == []
        assert made.db.execute("SELECT count(*), min(first), max(last) FROM span").fetchone() == (1, 1, count)


def test_a_reported_result_is_not_reported_again() -> None:
    a, b = Ended(IDS[0], 1, OK), Ended(IDS[2], 1, OK)
    with projector_harness() as made:
        group = batches_of(
            [(TASKS, frame(PLAIN, [IDS[0], IDS[2]])), (RESULTS, results(PLAIN, a)), (RESULTS, results(PLAIN, b))]
        )
        applied = made.projector.apply(group, frozenset({(RESULTS, 0, 0)}))
        assert [c.id for c in applied.closed] == [IDS[2]]


def test_an_open_task_appended_again_gets_the_new_offset() -> None:
    """Its owner can then truncate the topic."""
    both = [IDS[0], IDS[2]]
    with projector_harness() as made:
        made.apply(batches_of([(TASKS, frame(PLAIN, both)), (RESULTS, results(PLAIN, Ended(IDS[2], 1, ERROR)))]))
        assert queries.oldest_open_seq(made.db, ENDPOINT) == 0
        made.apply([RecordBatch(TASKS, 0, (7,), (Record(encode(frame(PLAIN, both, 2_000))),))])
        assert queries.oldest_open_seq(made.db, ENDPOINT) == 7 << 16
        state = made.state(IDS[0])
        assert state is not None
        assert state.accepted_us == 1_000
        assert queries.oldest_open_seq(made.db, "nowhere") is None


def test_tasks_past_their_expiry_are_found() -> None:
    call = msgspec.structs.replace(PLAIN, expires_us=50)
    with projector_harness() as made:
        made.apply(batches_of([(TASKS, frame(call, [IDS[0]])), (TASKS, frame(PLAIN, [IDS[2]]))]))
        assert made.task_queries.expired(made.db, 49, 10) == []
        assert [r[5].id for r in made.task_queries.expired(made.db, 50, 10)] == [IDS[0]]


def test_tasks_fired_by_an_event() -> None:
    with projector_harness() as made:
        made.apply(batches_of([(TASKS, frame(RETRIED, [IDS[3]]))]))
        assert made.task_queries.fired(made.db, "src", "e1") == [(RETRIED, IDS[3])]
        assert made.task_queries.fired(made.db, "src", "other") == []


def test_pages_have_no_gaps_or_duplicates_while_rows_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        view = View.open(tmp_path / "view.db")
        tasks = [msgspec.structs.replace(task_of(IDS[0]), id=i) for i in many(60)]
        for i in range(3):
            message = TaskFrame(VERSION, PLAIN, 10 + i, tasks[i * 20 : i * 20 + 20])
            await view.apply([RecordBatch(TASKS, 0, (i,), (Record(encode(message)),))])
        for filters in (TaskFilter(limit=7), TaskFilter(limit=7, owner="ann"), TaskFilter(limit=7, state="waiting")):
            seen: list[bytes] = []
            cursor: str | None = ""
            turn = 0
            while cursor is not None:
                page, cursor = await view.tasks(msgspec.structs.replace(filters, cursor=cursor))
                seen += [s.id for s in page]
                turn += 1
                offset = view.positions()[TASKS, 0]
                new = msgspec.structs.replace(task_of(IDS[0]), id=(10_000 + offset).to_bytes(16, "big"))
                late = TaskFrame(VERSION, PLAIN, 99, [new])
                await view.apply([RecordBatch(TASKS, 0, (offset,), (Record(encode(late)),))])
            newest_first = [i for i in seen if i in {t.id for t in tasks}]
            assert newest_first == [t.id for t in reversed(tasks)]
            assert len(set(seen)) == len(seen)
        since, _ = await view.tasks(TaskFilter(since_us=12, limit=1000))
        assert {s.accepted_us for s in since} == {12, 99}
        await view.close()

    asyncio.run(main())
