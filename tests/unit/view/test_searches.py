"""Lists by period and by several states, counts, short ids and retries, on the view's database."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from oncue import ids
from oncue.errors import Invalid
from oncue.log import Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import ERROR, OK, VERSION, Call, Ended, Event, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import EVENTS, RESULTS
from oncue.view import EventFilter, TaskFilter, event_lists, lists, queries, short_ids
from oncue.view.lists import WORDS
from oncue.view.projector import Projector
from oncue.view.queries import TaskQueries
from oncue.view.schema import open_writer
from oncue.view.spans import SPAN_US
from tests.unit.view.test_record_rows import plan_of

MINUTE_US = 60_000_000
START_US = 1_700_000_000_000_000


class Filled:
    """A view with tasks of two rules, a minute apart, and every third of them failed."""

    def __init__(self, path: Path, count: int = 60) -> None:
        self.db = open_writer(path)
        self.projector, self.queries = Projector(self.db), TaskQueries()
        self.calls = [Call(VERSION, "f" * 64, f"ep{i}", "ann", "f", f"rule{i}", 1) for i in range(2)]
        self.offsets: dict[str, int] = {}
        self.tasks: list[bytes] = []
        self.at: dict[bytes, int] = {}
        for n in range(count):
            at = START_US + n * MINUTE_US
            task = ids.derived_ids(at // 1000, str(n).encode())[0]
            self.tasks.append(task)
            self.at[task] = at
            event = ("src", f"e{n}") if n % 2 else None
            call = self.calls[n // 20 % 2]
            self.apply("oncue.tasks." + call.endpoint, TaskFrame(VERSION, call, at, [TaskRecord(task, b"", event)]))
            if n % 3 == 0:
                self.end(task, call, at, ERROR)
            elif n % 3 == 1:
                self.end(task, call, at, OK)
            self.event(n, at)

    def apply(self, topic: str, message: object, time_ms: int = 0, headers: object = ()) -> None:
        value = message if isinstance(message, bytes) else encode(message)
        offset = self.offsets.get(topic, 0)
        self.offsets[topic] = offset + 1
        record = Record(value, time_ms=time_ms, headers=headers)  # type: ignore[arg-type]
        self.projector.apply([RecordBatch(topic, 0, (offset,), (record,))])

    def end(self, task: bytes, call: Call, at: int, status: int) -> None:
        self.apply(RESULTS, ResultFrame(VERSION, call, "", at, [Ended(task, 1, status, at, at + 1, b"", b"")]))

    def event(self, n: int, at: int) -> None:
        made = Event(id=f"e{n}", source="src", type=f"t{n % 2}")
        value, headers = cloudevents.to_record(made)
        self.apply(EVENTS, value, at // 1000, headers)

    def listed(self, **given: object) -> list[int]:
        """Return the numbers of the tasks of a list, read page by page."""
        found, cursor = [], ""
        while cursor is not None:
            states, cursor = lists.page(self.db, TaskFilter(cursor=cursor, limit=7, **given), self.queries.calls)  # type: ignore[arg-type, assignment]
            found += [self.tasks.index(s.id) for s in states]
        assert lists.count(self.db, TaskFilter(**given), 1_000) == len(found)  # type: ignore[arg-type]
        return found

    def events(self, **given: object) -> list[int]:
        found, cursor = [], ""
        while cursor is not None:
            rows, cursor = event_lists.page(self.db, EventFilter(cursor=cursor, limit=7, **given))  # type: ignore[arg-type, assignment]
            found += [int(row.event.id[1:]) for row in rows]
        counted, all_ = event_lists.count(self.db, EventFilter(**given), 1_000)  # type: ignore[arg-type]
        assert counted == len(found) if all_ else counted < len(found) or counted <= event_lists.SCANNED
        return found


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = Filled(tmp_path / "view.db")
    yield made
    made.db.close()


def at(n: int) -> int:
    return START_US + n * MINUTE_US


def test_a_period_has_the_tasks_accepted_in_it(filled: Filled) -> None:
    every = list(range(59, -1, -1))
    assert filled.listed() == every
    for since, until in ((0, 0), (10, 0), (0, 30), (10, 30), (59, 60), (60, 70), (0, 1)):
        wanted = [n for n in every if n >= since and (not until or n < until)]
        period = {"since_us": at(since), "until_us": at(until) if until else 0}
        assert filled.listed(**period) == wanted
        assert filled.listed(rule="rule1", **period) == [n for n in wanted if n // 20 % 2 == 1]
        assert filled.listed(state="failed", **period) == [n for n in wanted if n % 3 == 0]
        assert filled.listed(state="open", endpoint="ep0", **period) == [
            n for n in wanted if n % 3 == 2 and n // 20 % 2 == 0
        ]


def test_spans_of_older_versions_hide_no_task(filled: Filled) -> None:
    """They may be longer than SPAN_US: here one has all tasks of an hour."""
    filled.db.execute("DELETE FROM span WHERE first > 1 AND first <= 20")
    filled.db.execute("UPDATE span SET last = 20, accepted_us = ? WHERE first = 1", (at(19),))
    filled.db.execute("UPDATE meta SET value = '21' WHERE name = 'bounded_spans'")
    assert filled.listed(until_us=at(3)) == [2, 1, 0]
    assert filled.listed(since_us=at(1), until_us=at(3), rule="rule0") == [2, 1]


def test_spans_are_bounded_in_time(filled: Filled) -> None:
    assert filled.db.execute("SELECT value FROM meta WHERE name = 'bounded_spans'").fetchone() == ("1",)
    text = (
        "SELECT max(task.accepted_us) - min(task.accepted_us), max(task.accepted_us) - span.accepted_us"
        " FROM span JOIN task ON task.n BETWEEN first AND last GROUP BY first"
    )
    found = filled.db.execute(text).fetchall()
    assert len(found) >= 6
    assert all(length <= SPAN_US and beyond <= 0 for length, beyond in found)


def test_several_states_are_one_list(filled: Filled) -> None:
    every = range(59, -1, -1)
    assert filled.listed(state="failed,succeeded") == [n for n in every if n % 3 != 2]
    assert filled.listed(state="waiting, failed") == [n for n in every if n % 3 != 1]
    assert filled.listed(state="open,waiting,failed,closed") == list(every)
    assert filled.listed(state="closed,failed") == filled.listed(state="closed")
    for word in WORDS:
        filled.listed(state=f"{word},failed", since_us=1)
    with pytest.raises(Invalid, match="happy"):
        filled.listed(state="failed,happy")


def test_a_count_stops_at_its_limit(filled: Filled) -> None:
    assert lists.count(filled.db, TaskFilter(), 25) == 25
    assert lists.count(filled.db, TaskFilter(state="failed,succeeded"), 25) == 25
    assert lists.count(filled.db, TaskFilter(rule="nobody's"), 25) == 0


def test_a_retried_task_names_its_newest_retry(filled: Filled) -> None:
    old, other = filled.tasks[0], filled.tasks[3]
    retries = [ids.new_uuid7(), ids.new_uuid7()]
    for retry in retries:
        frame = TaskFrame(VERSION, filled.calls[0], at(99), [TaskRecord(retry, b"", None, old)])
        filled.apply("oncue.tasks.ep0", frame)
    assert queries.retries(filled.db, [old, other]) == {old: retries[1]}
    left = lists.page(filled.db, TaskFilter(state="failed", not_retried=True), filled.queries.calls)[0]
    assert other in {s.id for s in left}
    assert old not in {s.id for s in left}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (TaskFilter(since_us=5, until_us=9), "SEARCH task USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (TaskFilter(rule="rule0", since_us=5), "SEARCH span USING INDEX span_rule (rule=? AND rowid>?)"),
        (TaskFilter(state="failed", since_us=5, until_us=9), "USING INDEX task_odd (state=? AND rowid>? AND rowid<?)"),
        (TaskFilter(not_retried=True), "SEARCH r USING COVERING INDEX task_retried"),
    ],
)
def test_lists_of_a_period_use_an_index(filled: Filled, filters: TaskFilter, wanted: str) -> None:
    filled.db.execute("UPDATE span SET accepted_us = 7")
    made = lists.plan(filled.db, filters, "x")
    assert made is not None
    found = plan_of(filled.db, made.text(), (*made.given, 9))
    assert wanted in found
    assert "TEMP B-TREE" not in found


# ---------------------------------------------------------------- short ids


def added(db: sqlite3.Connection, call: int, tasks: list[bytes]) -> None:
    db.executemany("INSERT INTO task (id, call, known) VALUES (?, ?, 1)", [(t, call) for t in tasks])


def test_a_short_id_means_one_task_only(filled: Filled) -> None:
    chosen = random.Random(5)
    ms = at(5) // 1000
    batch = ids.derived_ids(ms + 1, b"batch", 300)
    same_ms = [ids.derived_ids(ms + 2, bytes([n]))[0] for n in range(200)]
    two = [ids.derived_ids(ms + 3, bytes([n]), 3) for n in range(20)]  # batches of one ms
    added(filled.db, 1, [*batch, *same_ms, *(t for b in two for t in b)])
    every = [row[0] for row in filled.db.execute("SELECT id FROM task")]
    for task in chosen.sample(every, 200):
        (short,) = short_ids.shortened(filled.db, [task])
        assert short_ids.matching(filled.db, short, "", 9, filled.queries.calls) == [task]
        assert short_ids.matching(filled.db, short.upper(), "ann", 9, filled.queries.calls) == [task]
        assert short_ids.matching(filled.db, short, "bob", 9, filled.queries.calls) == []
        assert len(short) <= 24
    assert short_ids.shortened(filled.db, [filled.tasks[0]]) == [filled.tasks[0].hex()[:12]]
    assert short_ids.shortened(filled.db, [batch[7]]) == [batch[7].hex()[:12] + "..0007"]
    several = short_ids.matching(filled.db, same_ms[0].hex()[:13], "", 9, filled.queries.calls)
    assert len(several) == 9
    assert set(several) <= set(same_ms)


def test_too_short_an_id_costs_little(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_ids, "SCANNED_OWNERS", 10)
    with pytest.raises(Invalid, match="too many"):
        short_ids.matching(filled.db, filled.tasks[0].hex()[:4], "bob", 9, filled.queries.calls)
    assert len(short_ids.matching(filled.db, filled.tasks[0].hex()[:4], "ann", 99, filled.queries.calls)) == 10


@pytest.mark.parametrize("text", ["", "019", "xyz123", "01932c4a7e10..", "..0001", "0" * 33, "0193 2c4a", "a" * 101])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as e:
        short_ids.parse(text)
    assert e.value.remedy


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("01932c4a", ("01932c4a", "")),
        ("01932C4A-7e10-7", ("01932c4a7e107", "")),
        (" 01932c4a..0007\n", ("01932c4a", "0007")),
        ("01932c4a…7", ("01932c4a", "7")),
        ("01932c4a...07", ("01932c4a", "07")),
    ],
)
def test_forms_of_short_ids(text: str, parts: tuple[str, str]) -> None:
    assert short_ids.parse(text) == parts


# ---------------------------------------------------------------- events


def test_events_are_found_by_period_id_and_tasks(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_lists, "SCANNED", 9)  # so a list takes several pages
    every = range(59, -1, -1)
    assert filled.events() == list(every)
    assert filled.events(since_us=at(10), until_us=at(30)) == [n for n in every if 10 <= n < 30]
    assert filled.events(since_us=at(10), type="t1") == [n for n in every if n >= 10 and n % 2]
    assert filled.events(source="src", until_us=at(3)) == [2, 1, 0]
    assert filled.events(id="e7") == [7]
    assert filled.events(id="e1") == [19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 1]
    caused = [n for n in every if n % 2]
    assert filled.events(rule="rule0") == [n for n in caused if n // 20 % 2 == 0]
    assert filled.events(endpoint="ep1", state="failed") == [n for n in caused if n // 20 % 2 == 1 and n % 3 == 0]
    assert filled.events(state="failed,waiting", owner="ann") == [n for n in caused if n % 3 != 1]
    assert filled.events(rule="rule0", owner="bob") == []
    assert filled.events(rule="nobody's") == []
    with pytest.raises(Invalid, match="happy"):
        filled.events(state="happy")
    with pytest.raises(Invalid, match="happy"):  # told also where nothing could fit
        filled.events(rule="nobody's", state="happy")


def test_events_without_a_time_order_are_found(filled: Filled) -> None:
    """Two partitions are read one after the other, and a clock was put right."""
    filled.event(60, at(5))
    assert filled.events(since_us=at(4), until_us=at(6)) == [60, 5, 4]


def test_a_view_of_an_older_version_gets_its_indexes(tmp_path: Path) -> None:
    db = open_writer(tmp_path / "view.db")
    db.execute("DROP INDEX task_retried")
    db.execute("DROP INDEX event_at")
    db.execute("DELETE FROM meta WHERE name = 'bounded_spans'")
    db.execute("INSERT INTO task (id) VALUES (x'00')")
    db.close()
    db = open_writer(tmp_path / "view.db")
    assert db.execute("SELECT value FROM meta WHERE name = 'bounded_spans'").fetchone() == ("2",)
    assert queries.retries(db, [b"1"]) == {}
    assert event_lists.page(db, msgspec.structs.replace(EventFilter(), since_us=1)) == ([], None)
    db.close()
