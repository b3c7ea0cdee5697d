"""Tasks of paused rules wait in the view, in nobody's way, and come back from there."""

from __future__ import annotations

import msgspec

from oncue import ids
from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED, PausedRules
from oncue.dispatcher.bridge.pending_tasks import OpenTask, PendingTasks
from oncue.protocol.records import VERSION, Call, TaskFrame, TaskRecord

FREE = Call(VERSION, "f" * 64, "ep", "ada", "f", "free")
CAPPED = msgspec.structs.replace(FREE, rule="capped")
PAUSED = PausedRules({("capped", "ada"): "it has used its node-hours"})


def records(count: int) -> list[TaskRecord]:
    return [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), count)]


def rows(call: Call, tasks: list[TaskRecord], first: int = 0, due_us: int = 0) -> list[OpenTask]:
    return [OpenTask(first + n, call, 1, 1, due_us, task) for n, task in enumerate(tasks)]


def pending(*open_tasks: OpenTask, paused: PausedRules = NONE_PAUSED) -> PendingTasks:
    """Return a queue that has loaded these rows of the view."""
    made = PendingTasks(lambda task_id: False, 1 << 20)
    made.paused, made.now_us = paused, 1_000
    _load(made, *open_tasks)
    return made


def _load(tasks: PendingTasks, *open_tasks: OpenTask) -> None:
    wanted = tasks.request_page()
    assert wanted is not None
    tasks.add_page(wanted[0], [row for row in open_tasks if row.seq > wanted[1]])


def queued(tasks: PendingTasks) -> list[bytes]:
    return [t.id for g in tasks.queue for t in g.tasks]


def test_tasks_of_a_paused_rule_take_no_room_and_no_turn() -> None:
    capped, free = records(3), records(2)
    made = pending(*rows(CAPPED, capped), *rows(FREE, free, 10), paused=PAUSED)
    made.add(TaskFrame(VERSION, CAPPED, 1, records(2)), 10)
    assert queued(made) == [t.id for t in free]
    assert (made.queued_tasks, made.queued_bytes) == (2, sum(len(t.args) for t in free))


def test_a_pause_takes_queued_tasks_and_retries_out_and_its_end_loads_them() -> None:
    capped, free, retry = records(3), records(2), records(1)
    view = [*rows(CAPPED, capped), *rows(FREE, free, 10), *rows(CAPPED, retry, 20, due_us=2_000)]
    made = pending(*view)
    assert len(queued(made)) == 5
    made.pause(PAUSED)
    made.now_us = 10_000_000
    made.enqueue_due()
    assert queued(made) == [t.id for t in free]
    assert made.request_page() is None

    made.pause(NONE_PAUSED)
    _load(made, *view)
    assert sorted(queued(made)) == sorted(t.id for t in (*capped, *free, *retry))
    assert made.queued_bytes == sum(len(t.args) for t in (*capped, *free, *retry))


def test_another_pause_loads_only_what_may_start_again() -> None:
    capped = records(2)
    made = pending(*rows(CAPPED, capped), paused=PAUSED)
    made.pause(PausedRules({**PAUSED.reasons, ("free", "ada"): "it too"}))
    assert made.request_page() is None
    made.pause(PausedRules({("free", "ada"): "it too"}))
    _load(made, *rows(CAPPED, capped))
    assert queued(made) == [t.id for t in capped]


def test_before_the_use_is_known_no_rule_and_every_direct_call_starts() -> None:
    unknown = PausedRules(others="the server has just started")
    direct = msgspec.structs.replace(FREE, rule="")
    assert (unknown.why(FREE), unknown.why(direct)) == ("the server has just started", "")
    assert PAUSED.frees(unknown)
    assert not unknown.frees(NONE_PAUSED)
    assert PAUSED.why(msgspec.structs.replace(CAPPED, owner="bob")) == ""  # another's rule of that name
