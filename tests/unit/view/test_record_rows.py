"""Rows of the view beside tasks, unreadable records, and query plans."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from oncue.errors import Invalid
from oncue.log import Record, RecordBatch
from oncue.protocol import cloudevents
from oncue.protocol.codec import encode
from oncue.protocol.records import (
    OK,
    OUTPUT_BYTES,
    VERSION,
    Call,
    Cancel,
    Claim,
    DeadLetter,
    Deployment,
    Ended,
    EndpointRecord,
    Event,
    FunctionRecord,
    ResultFrame,
    RuleSwitch,
    StoredRetryPolicy,
    TaskFrame,
    TaskRecord,
    TokenRecord,
)
from oncue.protocol.reports import Output, Started, Usage
from oncue.protocol.topics import CONTROL, DEAD, EVENTS, REGISTRY, REPORTS, RESULTS, TaskTopics
from oncue.view import DeadRow, EventFilter, TaskFilter, View, lists, lookups, queries
from oncue.view.schema import KINDS, open_writer
from tests.unit.view.view_harness import ViewHarness, run

TASKS = TaskTopics().of("ep")
CALL = Call(VERSION, "a" * 64, "ep", "ann", "f")
ID = b"\x07" * 16


def function(name: str, content: str, owner: str = "ann", version: int = 0) -> FunctionRecord:
    return FunctionRecord(VERSION, content * 64, name, owner, "3.11", 4, b"body" + content.encode(), version=version)


def test_functions_have_versions(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        view = harness.view
        await harness.append(
            REGISTRY, function("f", "a"), function("f", "b"), function("g", "a"), function("f", "c", "bob")
        )
        await harness.append(REGISTRY, function("f", "a"))  # registered already
        listed, cursor = await view.functions()
        assert [(f.name, f.owner, f.version, f.body) for f in listed] == [
            ("f", "bob", 1, b""),
            ("g", "ann", 1, b""),
            ("f", "ann", 2, b""),
            ("f", "ann", 1, b""),
        ]
        assert cursor is None
        newest = await view.function("f", owner="ann")
        assert newest is not None
        assert (newest.id, newest.version, newest.body) == ("b" * 64, 2, b"bodyb")
        first = await view.function("f@1", owner="ann")
        assert first is not None
        assert first.id == "a" * 64
        assert (await view.function("a" * 64)) is not None
        assert await view.function("c" * 64, owner="ann") is None
        by_hash = await view.function("c" * 64, owner="ann", of_others=True)
        assert by_hash is not None
        assert by_hash.owner == "bob"
        for wrong in ("f@3", "f@x", "nothing", "d" * 64, "", "@1"):
            assert await view.function(wrong, owner="ann") is None
        page, more = await view.functions(limit=3)
        assert len(page) == 3
        assert more is not None
        rest, end = await view.functions(more, 3)
        assert [(f.name, f.version) for f in rest] == [("f", 1)]
        assert end is None
        await harness.append(REGISTRY, function("f", "e", version=9), function("f", "d"))
        assert [f.version for f in (await view.functions(limit=2))[0]] == [10, 9]

    run(tmp_path, work)


def test_versions_of_a_deployment_are_found_one_by_one(tmp_path: Path) -> None:
    """Early servers gave all versions one key; a label may look like such a key."""

    async def work(harness: ViewHarness) -> None:
        view = harness.view
        for label in ("scan", "scan@2"):
            versions = [Deployment(VERSION, label, n, "ann", f"# {n}", {}) for n in (1, 2, 3)]
            keys = [f"deployment:{label}", f"deployment:{label}", f"deployment:{label}@3"]
            records = [Record(encode(d), key=key.encode()) for d, key in zip(versions, keys, strict=True)]
            await harness.append(REGISTRY, *records)
            assert [await view.deployment_version(label, n) for n in (1, 2, 3, 4)] == [*versions, None]
            assert await view.newest_version(label) == 3
        assert await view.newest_version("nothing") == 0

    run(tmp_path, work)


def test_a_long_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(harness: ViewHarness) -> None:
        versions = [Deployment(VERSION, "scan", n, "ann", "x" * 10, {}) for n in range(1, 7)]
        await harness.append(REGISTRY, *versions)
        found = await harness.view.deployment_history("scan")
        assert [(d.version, len(d.text)) for d in found] == [(6, 10), (5, 10), (4, 0), (3, 0)]

    monkeypatch.setattr(lookups, "HISTORY", 4)
    monkeypatch.setattr(lookups, "HISTORY_BYTES", 25)
    run(tmp_path, work)


def test_the_newest_endpoint_deployment_switch_and_token_count(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        view = harness.view
        old = EndpointRecord(VERSION, "e1", "hpc", "ann", b"k", revoked=True)
        new = EndpointRecord(VERSION, "e2", "hpc", "ann", b"k2", labels={"site": "x"})
        await harness.append(REGISTRY, msgspec.structs.replace(old, revoked=False), new, old)
        assert await view.endpoints() == [new, old]
        assert await view.endpoint("hpc") == new
        assert await view.endpoint("e1") == old
        assert await view.endpoint("nowhere") is None
        one = Deployment(VERSION, "scan", 1, "ann", "rules: []", {})
        two = msgspec.structs.replace(one, version=2)
        gone = msgspec.structs.replace(one, label="old", removed=True)
        await harness.append(REGISTRY, one, msgspec.structs.replace(gone, removed=False), two, gone)
        assert await view.deployments() == [two]
        assert await view.deployment_history("scan") == [two, one]
        off, on = RuleSwitch(VERSION, "r", False), RuleSwitch(VERSION, "r", True)
        await harness.append(REGISTRY, off, on)
        assert await view.switches() == [on]
        token = TokenRecord(VERSION, "t1", "h" * 64, "ann", ("user",))
        revoked = msgspec.structs.replace(token, revoked=True)
        await harness.append(REGISTRY, token, revoked, key=b"token/t1")
        assert await view.tokens() == [revoked]
        assert await view.token_by_hash("h" * 64) == revoked
        assert await view.token_by_hash("g" * 64) is None
        await harness.append(REGISTRY, Record(b"", key=b"token/t1"))  # compaction's deletion
        assert await view.tokens() == []

    run(tmp_path, work)


def test_events(tmp_path: Path) -> None:
    def record(n: int, binary: bool = False) -> Record:
        made = Event(
            id=f"e{n}", source=f"/s{n % 2}", type=f"t{n % 3}", data={"n": n}, datacontenttype="application/json"
        )
        value, headers = cloudevents.to_record(made, binary=binary)
        return Record(value, headers=headers, time_ms=100 + n)

    async def work(harness: ViewHarness) -> None:
        view = harness.view
        applied = await harness.append(
            EVENTS, *[record(n, n % 2 == 0) for n in range(12)], Record(b"rubbish"), record(12)
        )
        assert applied.dead == []  # the rules' engine writes its dead letter
        row = await view.event(3)
        assert row is not None
        assert (row.offset, row.event.id, row.event.data, row.at_us) == (3, "e3", {"n": 3}, 103_000)
        assert await view.event(12) is None
        for given, wanted in (
            ({}, [13, *range(11, -1, -1)]),
            ({"type": "t1"}, [10, 7, 4, 1]),
            ({"source": "/s1"}, [11, 9, 7, 5, 3, 1]),
            ({"source": "/s1", "type": "t1"}, [7, 1]),
            ({"type": "other"}, []),
        ):
            seen: list[int] = []
            cursor: str | None = ""
            while cursor is not None:
                rows, cursor = await view.events(EventFilter(cursor=cursor, limit=2, **given))  # type: ignore[arg-type]
                seen += [r.offset for r in rows]
            assert seen == wanted
        with pytest.raises(Invalid, match="cursor"):
            await view.events(EventFilter(cursor="x"))
        assert await view.delete_older_than(106) == 6
        assert await view.event(5) is None

    run(tmp_path, work)


def test_reports(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        view = harness.view
        await harness.append(TASKS, TaskFrame(VERSION, CALL, 1, [TaskRecord(ID, b"")]))
        late, early = (Usage(VERSION, "ep", at, 4, busy, 0, 0) for at, busy in ((20, 2), (10, 1)))
        await harness.append(REPORTS, late, early)
        assert await view.usage() == {"ep": late}

        def output(attempt: int, offset: int, text: bytes) -> Output:
            return Output(VERSION, "ep", ID, attempt, offset, text)

        await harness.append(REPORTS, output(1, 0, b"hello "), output(1, 6, b"world"), output(1, 0, b"hello "))
        await harness.append(REPORTS, output(1, 9, b"ld!"))  # overlaps
        assert await view.output(ID) == b"hello world!"
        await harness.append(REPORTS, output(1, 20, b"more"))
        assert await view.output(ID) == b"hello world!\n[8 bytes missing]\nmore"
        await harness.append(REPORTS, output(2, 0, b"x" * (OUTPUT_BYTES + 5)), output(1, 24, b"late"))
        assert await view.output(ID) == b"x" * OUTPUT_BYTES
        await harness.append(REPORTS, Started(VERSION, "ep", ((ID, 1, 50),), "w1 (pid 7) on n2"))
        assert await view.task_workers(ID) == {1: "w1 (pid 7) on n2"}
        running, _ = await view.tasks(TaskFilter(state="running"))
        assert [s.id for s in running] == [ID]
        assert await view.output(b"?" * 16) == b""
        await harness.append(RESULTS, ResultFrame(VERSION, CALL, "ep", 1, [Ended(ID, 1, OK, 1, 10**15)]))
        await view.delete_older_than(0)
        assert await view.output(ID) == b""  # its result has it

    run(tmp_path, work)


def test_claims_and_cancels(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        await harness.append(CONTROL, Claim(VERSION, "s1", ("ep", "other")), Claim(VERSION, "s2", url="http://s2"))
        (claim,) = await harness.view.claims()
        assert (claim.partition, claim.epoch, claim.claim.server, claim.claim.url) == (0, 2, "s2", "http://s2")
        await harness.append(TASKS, TaskFrame(VERSION, CALL, 1, [TaskRecord(ID, b"")]))
        await harness.append(CONTROL, Cancel(VERSION, "ep", (ID, b"?" * 16), "ann", 9))
        assert await harness.view.cancels(10) == [(ID, "ep")]
        assert [s.cancel_by for s in (await harness.view.tasks(TaskFilter(state="cancelling")))[0]] == ["ann"]

    run(tmp_path, work)


# ---------------------------------------------------------------- records that cannot be applied


DEEP = b"\x91" * 5_000 + b"\xc0"  # lists in lists: Python cannot decode so many

POISON = [
    *((topic, Record(DEEP)) for topic in (TASKS, RESULTS, CONTROL, REGISTRY, REPORTS)),
    (TASKS, Record(b"\xc1")),
    (TASKS, Record(b"")),
    (TASKS, Record(encode([1, "not a call", 1, []]))),
    (TASKS, Record(encode(TaskFrame(VERSION, CALL, 2**63, [TaskRecord(b"x" * 16, b"")])))),
    (RESULTS, Record(encode(ResultFrame(VERSION, CALL, "ep", 1, [Ended(ID, 1, 99)])))),
    (RESULTS, Record(encode(ResultFrame(VERSION, CALL, "ep", 1, [Ended(ID, 0, OK)])))),
    (RESULTS, Record(encode(ResultFrame(VERSION, CALL, "ep", 1, [Ended(ID, 1, OK, 0, 2**64 - 1)])))),
    (
        RESULTS,
        Record(
            encode(
                ResultFrame(
                    VERSION,
                    msgspec.structs.replace(CALL, retry=StoredRetryPolicy(2**40)),
                    "ep",
                    1,
                    [Ended(ID, 2**33, 1, 0, 1)],
                )
            )
        ),
    ),
    (CONTROL, Record(encode(["cancel", 1]))),
    (REGISTRY, Record(encode(["token"]))),
    (REPORTS, Record(b"nonsense")),
]


@pytest.mark.parametrize(("topic", "poison"), POISON)
def test_an_unreadable_record_becomes_a_dead_letter_and_stops_nothing(
    tmp_path: Path, topic: str, poison: Record
) -> None:
    async def work(harness: ViewHarness) -> None:
        view = harness.view
        good = [Record(encode(TaskFrame(VERSION, CALL, 1, [TaskRecord(bytes([n]) * 16, b"")]))) for n in range(3)]
        ends = ResultFrame(VERSION, CALL, "ep", 1, [Ended(b"\x01" * 16, 1, OK)])
        group = [RecordBatch(TASKS, 0, range(3), good)]
        first = 3 if topic == TASKS else 0
        group.append(RecordBatch(topic, 0, (first,), (poison,)))
        last = 1 if topic == RESULTS else 0
        group.append(RecordBatch(RESULTS, 0, (last,), (Record(encode(ends)),)))
        applied = await view.apply(group)
        assert [(d.stage, d.topic, d.partition, d.offset) for d in applied.dead] == [("decode", topic, 0, first)]
        letter = applied.dead[0]
        assert letter.reason
        assert letter.remedy
        assert letter.record == poison.value
        assert [c.id for c in applied.closed] == [b"\x01" * 16]
        assert len(await view.open_tasks("ep", -1, 10)) == 2
        assert view.positions()[topic, 0] == first + (2 if topic == RESULTS else 1)
        # The next process gets the letter again, until it is seen in oncue.dead.
        await view.close()
        again = View.open(tmp_path / "view.db")
        assert (await again.apply([])).dead == [letter]
        assert (await again.apply([])).dead == []
        await again.apply([RecordBatch(DEAD, 0, (0,), (Record(encode(letter)),))])
        assert await again.dead_letter(0) == DeadRow(0, letter)
        await again.close()
        third = View.open(tmp_path / "view.db")
        assert (await third.apply([])).dead == []
        await third.close()

    run(tmp_path, work)


def test_an_event_that_an_older_version_took_hides_no_others(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        good = [Event(id=str(n), source="/s", type="t", data=n) for n in range(3)]
        await harness.append(EVENTS, *(Record(cloudevents.to_json(e)) for e in good))
        deep = b'{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": %s}' % (b"[" * 900 + b"]" * 900)
        with sqlite3.connect(tmp_path / "view.db") as db:
            db.execute("UPDATE event SET value = ? WHERE id = '1'", (deep,))
        db.close()
        rows, _ = await harness.view.events(EventFilter())
        assert [r.event.id for r in rows] == ["2", "1", "0"]
        assert "nested" in rows[1].event.data

    run(tmp_path, work)


def test_an_unreadable_dead_letter_causes_no_dead_letter(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        letters = [DeadLetter(VERSION, "match", f"why {n}", n) for n in range(5)]
        applied = await harness.append(DEAD, Record(b"\xc1"), *letters)
        assert (await harness.append(DEAD, Record(DEEP), partition=1)).dead == []
        assert applied.dead == []
        rows, cursor = await harness.view.dead(limit=3)
        assert [r.id for r in rows] == [5, 4, 3]
        assert [r.letter for r in rows] == letters[:1:-1]
        rest, end = await harness.view.dead(cursor or "", 3)
        assert [r.id for r in rest] == [2, 1]
        assert end is None
        assert await harness.view.dead_letter(0) is None

    run(tmp_path, work)


def test_records_of_unknown_kinds_are_kept_for_a_newer_version(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        newer = Record(encode([VERSION + 1, {"another": "form"}]))
        applied = await harness.append(REGISTRY, Record(encode(["secret", 1, "sealed"])), function("f", "a"))
        assert applied.dead == []
        assert (await harness.append(TASKS, newer)).dead == []
        found = await harness.view.skipped()
        assert [(s.topic, s.offset, s.kind) for s in found] == [
            (REGISTRY, 0, "secret"),
            (TASKS, 0, f"frame v{VERSION + 1}"),
        ]
        assert await harness.view.function("f") is not None

    run(tmp_path, work)
    # A kind that an older version skipped, and this one can read.
    db = open_writer(tmp_path / "view.db")
    task = Record(encode(TaskFrame(VERSION, CALL, 1, [TaskRecord(ID, b"")])))
    db.execute("INSERT INTO skipped VALUES (?, 0, 5, 'frame', ?, ?)", (TASKS, KINDS - 1, encode(task)))
    db.close()

    async def upgraded(harness: ViewHarness) -> None:
        assert [row[0] for row in await harness.view.open_tasks("ep", -1, 10)] == [5 << 16]
        assert len(await harness.view.skipped()) == 2

    run(tmp_path, upgraded)


def test_a_full_disk_makes_no_dead_letter(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        view = harness.view
        await harness.append(TASKS, TaskFrame(VERSION, CALL, 1, [TaskRecord(ID, b"")]))
        pages = view._db.execute("PRAGMA page_count").fetchone()[0]
        view._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        big = TaskFrame(VERSION, CALL, 1, [TaskRecord(bytes([n]) * 16, bytes(100_000)) for n in range(9)])
        with pytest.raises(Exception, match="full") as e:
            await harness.append(TASKS, big)
        assert "free some space" in e.value.remedy  # type: ignore[attr-defined]
        assert view.positions() == {(TASKS, 0): 1}
        view._db.execute("PRAGMA max_page_count = 1000000")
        applied = await harness.append(TASKS, big)  # there is space again
        assert applied.dead == []
        assert len(await view.open_tasks("ep", -1, 100)) == 9 + (ID not in {t.id for t in big.tasks})

    run(tmp_path, work)


# ---------------------------------------------------------------- indexes


def plan_of(db: sqlite3.Connection, text: str, given: Sequence[object]) -> str:
    return " | ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", given))


@pytest.mark.parametrize(
    ("text", "given", "index"),
    [
        (queries.OPEN, (0, "ep", 9), "task_open"),
        (queries.OPEN_NORMAL, (0, "ep", 9), "task_open"),
        (queries.OPEN_OTHERS, (0, "ep", -1, 9), "task_priority"),
        (queries.OTHERS_OPEN, ("ep",), "task_priority"),
        (queries.EXPIRED, (0, 9), "task_expiring"),
        (queries.CANCELS, (9,), "task_cancelling"),
        (queries.OPEN_COUNTS, (), "task_open"),
        (queries.OLDEST_OPEN, ("ep",), "task_open"),
        (queries.FIRED, ("s", "i"), "task_caused"),
    ],
)
def test_queries_use_their_index(tmp_path: Path, text: str, given: tuple[object, ...], index: str) -> None:
    db = open_writer(tmp_path / "view.db")
    found = plan_of(db, text, given)
    db.close()
    assert f"task USING INDEX {index}" in found or f"task USING COVERING INDEX {index}" in found
    if text is not queries.FIRED:
        assert "TEMP B-TREE" not in found


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (TaskFilter(), "SCAN task"),  # from the newest row down, until the page is full
        (TaskFilter(cursor="5-x"), "SEARCH task USING INTEGER PRIMARY KEY (rowid<?)"),
        (TaskFilter(owner="ann"), "SEARCH span USING INDEX span_owner"),
        (TaskFilter(owner="ann", endpoint="ep", cursor="5-x"), "SEARCH span USING INDEX span_endpoint"),
        (TaskFilter(function="f", owner="ann"), "SEARCH span USING INDEX span_name"),
        (TaskFilter(function="a" * 64), "SEARCH span USING INDEX span_function"),
        (TaskFilter(rule="r", state="succeeded"), "SEARCH span USING INDEX span_rule"),
        (TaskFilter(state="failed"), "SEARCH task USING INDEX task_odd"),
        (TaskFilter(state="failed", cursor="5-x"), "SEARCH task USING INDEX task_odd"),
        (TaskFilter(state="lost", owner="ann"), "SEARCH task USING INDEX task_odd"),
        (TaskFilter(event=("s", "i")), "SEARCH task USING INDEX task_caused"),
        (TaskFilter(state="open"), "SCAN task USING INDEX task_open"),  # few are open: sorted
    ],
)
def test_lists_use_their_index(tmp_path: Path, filters: TaskFilter, wanted: str) -> None:
    db = open_writer(tmp_path / "view.db")
    db.execute("INSERT INTO word (text) VALUES ('ann'), ('ep'), ('f'), ('r'), (?)", ("a" * 64,))
    made = lists.plan(db, filters, "x")
    assert made is not None
    found = plan_of(db, made.text(), (*made.given, 9))
    db.close()
    assert wanted in found
    if "span" in wanted:
        assert "task USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in found
    if "task_caused" not in wanted and "task_open" not in wanted:
        assert "TEMP B-TREE" not in found


def test_an_unknown_state_is_refused(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        for filters in (TaskFilter(state="happy"), TaskFilter(cursor="1"), TaskFilter(cursor="x-y")):
            with pytest.raises(Invalid) as e:
                await harness.view.tasks(filters)
            assert e.value.remedy

    run(tmp_path, work)
