"""Open tasks by priority, as a channel loads them; views of former versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from msgspec.structs import replace

from oncue.protocol.records import OK, VERSION, Call, Ended, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS, TaskTopics
from oncue.view.schema import open_writer
from tests.unit.view.view_harness import ViewHarness, run

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TOPIC = TaskTopics().of("ep")
TASKS = [TaskRecord(bytes([n]) * 16, b"m") for n in range(6)]


def frame(priority: int, *tasks: TaskRecord) -> TaskFrame:
    return TaskFrame(VERSION, replace(CALL, priority=priority), 1, list(tasks))


def end_of(priority: int, task: TaskRecord) -> ResultFrame:
    return ResultFrame(VERSION, replace(CALL, priority=priority), "ep", 1, [Ended(task.id, 1, OK, 1, 2)])


def test_pages_have_the_open_tasks_of_one_priority(tmp_path: Path) -> None:
    async def work(harness: ViewHarness) -> None:
        await harness.append(TOPIC, frame(-1, *TASKS[:3]), frame(0, TASKS[3]), frame(1, TASKS[4]))
        await harness.append(RESULTS, end_of(-1, TASKS[1]), end_of(1, TASKS[5]))
        await harness.append(TOPIC, frame(1, TASKS[5]), frame(1, TASKS[3]))  # its outcome is known; it is told twice

        async def page(priority: int, after: int = -1) -> list[bytes]:
            found = await harness.view.open_page("ep", TOPIC, after, 10, priority)
            assert found.others
            return [row[5].id for row in found.rows]

        assert await page(-1) == [TASKS[0].id, TASKS[2].id]
        assert await page(0) == [TASKS[3].id]
        assert await page(1) == [TASKS[4].id]
        assert await page(-1, after=1) == [TASKS[2].id]
        await harness.append(RESULTS, end_of(-1, TASKS[0]), end_of(-1, TASKS[2]), end_of(1, TASKS[4]))
        assert not (await harness.view.open_page("ep", TOPIC, -1, 10)).others

    run(tmp_path, work)


def test_a_view_of_a_former_version_gets_the_column(tmp_path: Path) -> None:
    open_writer(tmp_path / "view.db").close()
    former = sqlite3.connect(tmp_path / "view.db")
    former.executescript("DROP INDEX task_priority; ALTER TABLE task DROP COLUMN priority;")
    former.execute("INSERT INTO task (id, seq, known) VALUES (x'01', 1, 1)")
    former.commit()
    former.close()

    for _ in range(2):  # the second time, it is there
        db = open_writer(tmp_path / "view.db")
        assert db.execute("SELECT priority FROM task").fetchall() == [(0,)]
        db.close()
    assert not list(tmp_path.glob("*.aside"))
