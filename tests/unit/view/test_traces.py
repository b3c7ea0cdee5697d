"""Traces: the tasks of an event, of windows that had it, and of their outcomes."""

from __future__ import annotations

from pathlib import Path

from oncue.ids import event_digest
from oncue.protocol.event_types import OUTCOME_SOURCE
from oncue.protocol.records import VERSION, Call, TaskFrame, TaskRecord
from oncue.protocol.topics import TASKS_PREFIX
from tests.unit.view.view_harness import ViewHarness, run

CALL = Call(VERSION, "f" * 64, "ep", "ann", "f", "rule", 1)
FIRST, SECOND = ("/s", "first"), ("/s", "second")


def task_id(n: int) -> bytes:
    return n.to_bytes(16, "big")


def test_each_event_of_a_window_leads_to_its_task_and_what_follows(tmp_path: Path) -> None:
    async def work(h: ViewHarness) -> None:
        own = TaskRecord(task_id(1), b"", SECOND)
        window = TaskRecord(task_id(2), b"", FIRST, members=event_digest(*SECOND) + event_digest("/s", "third"))
        after = TaskRecord(task_id(3), b"", (OUTCOME_SOURCE, task_id(2).hex()))
        of_outcomes = TaskRecord(task_id(4), b"", SECOND, members=event_digest(OUTCOME_SOURCE, task_id(3).hex()))
        await h.append(TASKS_PREFIX + "ep", TaskFrame(VERSION, CALL, 7, [own, window, after, of_outcomes]))

        found = {key: await h.view.trace(key, b"", 10) for key in (FIRST, SECOND, ("/s", "third"), ("/s", "none"))}

        ids = {key: [(t.state.id, t.after) for t in tasks] for key, tasks in found.items()}
        chain = [(task_id(3), task_id(2)), (task_id(4), task_id(3))]
        assert ids[FIRST] == ids["/s", "third"] == [(task_id(2), b""), *chain]
        assert ids[SECOND] == [(task_id(1), b""), (task_id(4), b""), (task_id(2), b""), chain[0]]
        assert ids["/s", "none"] == []
        assert len(await h.view.trace(SECOND, b"", 3)) == 3

    run(tmp_path, work)
