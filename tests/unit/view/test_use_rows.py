"""Use of tasks and rules: each attempt counts once, by its share of a node."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from oncue.log import Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import (
    ERROR,
    LOST,
    OK,
    VERSION,
    Call,
    Ended,
    ResultFrame,
    StoredRetryPolicy,
    TaskFrame,
    TaskRecord,
)
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.view import use_rows
from oncue.view.projector import Projector
from oncue.view.schema import open_writer
from oncue.view.use_rows import HOUR_US, RuleUsage

RULE = Call(VERSION, "a" * 64, "ep", "ada", "f", "reconstruct", retry=StoredRetryPolicy(max=1))
TASKS = TaskTopics().of("ep")
IDS = [bytes([n]) * 16 for n in range(1, 9)]
AT = 500_000 * HOUR_US
SECOND = 1_000_000


class Harness:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.db, self.projector, self._ends = db, Projector(db), dict[str, int]()

    def apply(self, *messages: TaskFrame | ResultFrame) -> None:
        batches = []
        for message in messages:
            topic = TASKS if isinstance(message, TaskFrame) else RESULTS
            offset = self._ends.get(topic, 0)
            self._ends[topic] = offset + 1
            batches.append(RecordBatch(topic, 0, (offset,), (Record(encode(message)),)))
        self.projector.apply(batches)

    def of_rules(self, after: int = 0) -> dict[use_rows.RuleKey, RuleUsage]:
        return use_rows.of_rules(self.db, after)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    db = open_writer(tmp_path / "view.db")
    try:
        yield Harness(db)
    finally:
        db.close()


def tasks(*ids: bytes, call: Call = RULE) -> TaskFrame:
    return TaskFrame(VERSION, call, AT, [TaskRecord(i, b"") for i in ids])


def ended(task: bytes, seconds: int = 10, attempt: int = 1, status: int = OK, hour: int = 0, **used: int) -> Ended:
    start = AT + hour * HOUR_US
    return Ended(task, attempt, status, start, start + seconds * SECOND, b"\x90" if status else b"", **used)


def results(*ends: Ended, call: Call = RULE, share: float = 0.25) -> ResultFrame:
    return ResultFrame(VERSION, call, "ep", AT, list(ends), 0, share)


def test_attempts_of_a_rule_count_by_their_share_of_a_node(harness: Harness) -> None:
    harness.apply(tasks(*IDS[:3]))
    harness.apply(results(ended(IDS[0], cpu_us=8 * SECOND, peak_bytes=7), ended(IDS[1], cpu_us=SECOND, peak_bytes=9)))
    harness.apply(results(ended(IDS[2], 100), share=2.0))
    used = RuleUsage(3, 120 * SECOND, 205 * SECOND, 9 * SECOND, 9)
    assert harness.of_rules() == {("reconstruct", "ada"): used}
    assert use_rows.of_task(harness.db, IDS[0]) == {1: (8 * SECOND, 7)}
    assert use_rows.of_task(harness.db, IDS[2]) == {}


def test_an_end_that_comes_twice_counts_once_and_each_attempt_counts(harness: Harness) -> None:
    harness.apply(tasks(*IDS[:3]))
    first = results(ended(IDS[0]), ended(IDS[1], status=ERROR))
    harness.apply(first, first)
    harness.apply(first, results(ended(IDS[1], attempt=2)))
    harness.apply(results(ended(IDS[1], attempt=2), ended(IDS[2])))
    assert harness.of_rules() == {("reconstruct", "ada"): RuleUsage(4, 40 * SECOND, 10 * SECOND)}


def test_attempts_that_never_started_and_tasks_without_a_rule_use_nothing(harness: Harness) -> None:
    direct = msgspec.structs.replace(RULE, rule="")
    harness.apply(tasks(IDS[0]), tasks(IDS[1], call=direct))
    harness.apply(results(Ended(IDS[0], 1, LOST, 0, AT, b"\x90")), results(ended(IDS[1], cpu_us=5), call=direct))
    assert harness.of_rules() == {}
    assert use_rows.of_task(harness.db, IDS[1]) == {1: (5, 0)}


def test_hours_are_counted_apart_and_old_ones_are_forgotten(harness: Harness) -> None:
    harness.apply(tasks(*IDS[:3]))
    for n in range(3):
        harness.apply(results(ended(IDS[n], hour=n)))
    hour = AT // HOUR_US
    key = ("reconstruct", "ada")
    assert [harness.of_rules(hour + n - 1)[key].attempts for n in range(3)] == [3, 2, 1]
    use_rows.forget(harness.db, AT + (use_rows.KEPT_HOURS + 2) * HOUR_US)
    assert harness.of_rules()[key].attempts == 1


def test_times_that_an_agent_made_up_stop_nothing(harness: Harness) -> None:
    harness.apply(tasks(*IDS))
    for task in IDS:
        mad = Ended(task, 1, OK, 1, 1 << 53, b"", cpu_us=1 << 53, peak_bytes=1 << 53)
        harness.apply(results(mad, share=1_000_000.0))
    assert harness.of_rules()["reconstruct", "ada"].attempts == len(IDS)
    assert harness.db.execute("SELECT count(*) FROM unburied").fetchone() == (0,)
