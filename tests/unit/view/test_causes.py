"""The first cause of a chain of tasks, followed back through their events."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from oncue.log import Record
from oncue.protocol import cloudevents
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import VERSION, Call, Event, TaskFrame, TaskRecord
from oncue.protocol.topics import EVENTS, TASKS_PREFIX
from oncue.view.chains.causes import LONGEST, Cause
from tests.unit.view.view_harness import ViewHarness, run

CALL = Call(VERSION, "f" * 64, "ep", "ann", "f", "rule", 1)


def task_id(n: int) -> bytes:
    return n.to_bytes(16, "big")


def record(event: Event) -> Record:
    value, headers = cloudevents.to_record(event)
    return Record(value, headers=headers, time_ms=5)


def frame(*tasks: tuple[int, tuple[str, str] | None]) -> TaskFrame:
    return TaskFrame(VERSION, CALL, 7, [TaskRecord(task_id(n), b"", event) for n, event in tasks])


def after(n: int) -> tuple[str, str]:
    return OUTCOME_SOURCE, task_id(n).hex()


def test_a_chain_is_followed_to_its_event(tmp_path: Path) -> None:
    async def work(h: ViewHarness) -> None:
        same_id = [Event(id="e", source=source, type="t", data=source) for source in ("/a", "/b", "/b")]
        await h.append(EVENTS, *map(record, same_id))
        tasks = [(1, ("/b", "e")), (2, after(1)), (3, after(2)), (4, None), (5, ("/c", "gone")), (6, after(5))]
        await h.append(TASKS_PREFIX + "ep", frame(*tasks, (7, after(99)), (8, (OUTCOME_SOURCE, "no id"))))
        found = {n: c for n in range(1, 9) for _, c in [(await h.view.with_causes([task_id(n)]))[task_id(n)]]}
        size = len(record(same_id[1]).value)
        assert found[1] == Cause(("/b", "e"), same_id[1], 0, size, task_id(1))
        assert found[3] == Cause(("/b", "e"), same_id[1], 2, size, task_id(1))
        assert found[4] == Cause(None, None, 0, 0, task_id(4))
        assert found[6] == Cause(("/c", "gone"), None, 1, 0, task_id(5))
        assert found[7].key is None  # of a task that is not kept
        assert found[8].key == (OUTCOME_SOURCE, "no id")
        together = await h.view.with_causes([task_id(n) for n in (*range(1, 9), 50)])
        assert {int.from_bytes(i, "big"): cause for i, (_, cause) in together.items()} == found

    run(tmp_path, work)


def test_events_have_no_index_by_key_before_a_chain_is_followed(tmp_path: Path) -> None:
    """It makes each event dearer, and only chains need it."""

    def indexes() -> set[str]:
        with contextlib.closing(sqlite3.connect(tmp_path / "view.db")) as db:
            return {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")}

    async def work(h: ViewHarness) -> None:
        await h.append(EVENTS, record(Event(id="e", source="/a", type="t")))
        assert "event_key" not in indexes()
        await h.append(TASKS_PREFIX + "ep", frame((1, ("/a", "e"))))
        found = await h.view.with_causes([task_id(1)])
        assert found[task_id(1)][1].event is not None
        assert "event_key" in indexes()

    run(tmp_path, work)


def test_a_circle_of_causes_ends(tmp_path: Path) -> None:
    """No rule makes one, but ids of events are what a sender chooses."""

    async def work(h: ViewHarness) -> None:
        await h.append(TASKS_PREFIX + "ep", frame((1, after(2)), (2, after(1))))
        cause = (await h.view.with_causes([task_id(1)]))[task_id(1)][1]
        assert (cause.key, cause.depth) == (None, LONGEST - 1)

    run(tmp_path, work)
