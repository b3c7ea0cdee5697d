"""Fences: ends by a former owner of an endpoint; pages of open tasks."""

from __future__ import annotations

from pathlib import Path

from oncue import ids
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.log.base import partition_of
from oncue.protocol.codec import encode
from oncue.protocol.records import EXPIRED, OK, VERSION, Call, Ended, Failure, Fence, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.task_lifecycle import State
from tests.unit.view.view_harness import ViewHarness, run

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TASKS = [TaskRecord(i, b"m\x92\x90\x80") for i in ids.batch_ids("ada", ids.new_uuid7(), 4)]
WHY = encode(Failure("oncue.TaskExpired", "late"))


def frame(*tasks: TaskRecord) -> TaskFrame:
    return TaskFrame(VERSION, CALL, 5, list(tasks))


def test_ends_by_a_former_owner_are_ignored_after_the_fence(tmp_path: Path) -> None:
    """A former owner appends them before it learns of its successor."""
    partition = partition_of(b"ep", 64)

    def late(epoch: int, task: TaskRecord) -> ResultFrame:
        return ResultFrame(VERSION, CALL, "", 5, [end_by_server(task, 1, EXPIRED, 9, WHY)], epoch)

    async def work(harness: ViewHarness) -> None:
        await harness.append(TaskTopics().of("ep"), frame(*TASKS))
        await harness.append(RESULTS, late(3, TASKS[0]))  # before the fence
        await harness.append(RESULTS, Fence(VERSION, "srv2", 64, ((partition, 8), ((partition + 1) % 64, 90))))
        await harness.append(RESULTS, late(3, TASKS[1]), late(8, TASKS[2]))
        # Results of an agent count, whichever server appends them.
        await harness.append(RESULTS, ResultFrame(VERSION, CALL, "ep", 5, [Ended(TASKS[3].id, 1, OK, 1, 2, b"m\xc0")]))
        states = {i: state for i, (state, _) in (await harness.view.states([t.id for t in TASKS])).items()}
        assert [states[t.id] for t in TASKS] == [State.EXPIRED, State.WAITING, State.EXPIRED, State.SUCCEEDED]

    run(tmp_path, work)


def test_a_page_of_open_tasks_has_the_offset_that_the_view_has_reached(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        await harness.append(TaskTopics().of("ep"), frame(TASKS[0]), frame(TASKS[1]))
        rows, reached, others = await harness.view.open_page("ep", TaskTopics().of("ep"), -1, 10)
        assert ([row[5].id for row in rows], reached, others) == ([TASKS[0].id, TASKS[1].id], 2, False)
        assert await harness.view.open_page("none", TaskTopics().of("none"), -1, 10) == ([], 0, False)

    run(tmp_path, work)
