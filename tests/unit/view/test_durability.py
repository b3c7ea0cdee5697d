"""A view rebuilt, killed, damaged, copied or trimmed answers the same."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from oncue.errors import Invalid, NotReady
from oncue.log import Record, RecordBatch, open_log
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Cancel, Ended, ResultFrame, TaskFrame, TaskRecord
from oncue.protocol.topics import CONTROL, RESULTS
from oncue.view import TaskFilter, View, ViewError
from oncue.view.schema import mark_damaged, open_writer
from tests.unit.view.view_child import ENDPOINT, FRAMES, PLAIN, RETRIED, SIZE, TASKS, ids_of, series

ALL = [i for n in range(FRAMES) for i in ids_of(n)]


def dump(path: Path) -> list[object]:
    """Return the view's rows, without row numbers."""
    db = open_writer(path)
    try:
        columns = [row[1] for row in db.execute("PRAGMA table_info(task)") if row[1] not in ("n", "call", "endpoint")]
        tasks = f"SELECT {', '.join('t.' + c for c in columns)}, c.raw, w.text FROM task t JOIN call c ON c.id = t.call"
        made: list[object] = db.execute(f"{tasks} JOIN word w ON w.id = t.endpoint ORDER BY t.id").fetchall()
        made += db.execute("SELECT * FROM attempt ORDER BY id, pos").fetchall()
        made += db.execute("SELECT * FROM position ORDER BY topic, partition").fetchall()
        return made
    finally:
        db.close()


async def apply_all(path: Path, groups: list[list[RecordBatch]]) -> None:
    view = View.open(path)
    for group in groups:
        await view.apply(group)
    await view.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The rows of a view that was never interrupted."""
    path = tmp_path_factory.mktemp("whole") / "view.db"
    asyncio.run(apply_all(path, series()))
    made = dump(path)
    assert len(made) > FRAMES * SIZE
    return made


@pytest.mark.parametrize("after", [3, 60, 180])
def test_a_view_killed_while_it_applies_records_catches_up(tmp_path: Path, whole: list[object], after: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.view.view_child", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if int(line) >= after:
                break
        child.kill()
        child.wait()
    path = tmp_path / "view.db"
    view = View.open(path)
    reached = view.positions()
    assert 0 < reached[TASKS, 0] < FRAMES
    asyncio.run(view.close())
    asyncio.run(apply_all(path, series()))  # applied batches are skipped
    assert dump(path) == whole


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_size_of_groups_does_not_matter(tmp_path: Path, whole: list[object], size: int) -> None:
    batches = [b for group in series() for b in group]
    groups = [batches[i : i + size] for i in range(0, len(batches), size)]
    asyncio.run(apply_all(tmp_path / "view.db", groups))
    assert dump(tmp_path / "view.db") == whole


def test_the_order_of_topics_does_not_matter(tmp_path: Path, whole: list[object]) -> None:
    """As in a rebuild where one reader is ahead: all outcomes first."""
    batches = [b for group in series() for b in group]
    ordered = sorted(batches, key=lambda b: b.topic)
    assert ordered[0].topic == RESULTS
    asyncio.run(apply_all(tmp_path / "view.db", [ordered[i : i + 20] for i in range(0, len(ordered), 20)]))
    assert dump(tmp_path / "view.db") == whole


def test_a_view_rebuilt_from_a_log_is_the_same(tmp_path: Path) -> None:
    async def follow(path: Path, log_url: str) -> list[object]:
        log = await open_log(log_url)
        view = View.open(path)
        topics = [TASKS, RESULTS, CONTROL]
        ends = await log.end_offsets(topics)
        reader = log.read(topics, start=view.positions())
        while not await view.wait_for(ends, 0):
            await view.apply(await reader.next())
        await reader.close()
        await view.close()
        await log.close()
        return dump(path)

    async def fill(log_url: str) -> list[object]:
        log = await open_log(log_url)
        grown: list[object] = []
        for part in range(3):
            for group in series()[part * 60 : part * 60 + 60]:
                for b in group:
                    await log.append(b.topic, b.records, 0)
            cancel = Cancel(VERSION, ENDPOINT, (ids_of(part)[0],), "ann", 77)
            await log.append(CONTROL, [Record(encode(cancel))], 0)
            await log.close()
            grown = await follow(tmp_path / "grown.db", log_url)
            log = await open_log(log_url)
        await log.close()
        return grown

    url = f"sqlite://{tmp_path / 'log'}"
    grown = asyncio.run(fill(url))
    assert grown == asyncio.run(follow(tmp_path / "again.db", url))
    assert len(grown) > 90 * SIZE


def some(n: int) -> list[RecordBatch]:
    call = msgspec.structs.replace(PLAIN, name=f"f{n}")
    tasks = TaskFrame(VERSION, call, n * 1_000, [TaskRecord(i, b"a") for i in ids_of(n)])
    ends = ResultFrame(VERSION, call, ENDPOINT, 0, [Ended(i, 1, OK, 1, n * 1_000) for i in ids_of(n)[:-1]])
    return [
        RecordBatch(TASKS, 0, (n,), (Record(encode(tasks)),)),
        RecordBatch(RESULTS, 0, (n,), (Record(encode(ends)),)),
    ]


@pytest.mark.parametrize("harm", ["schema", "garbage", "header", "marked", "foreign"])
def test_an_unusable_file_is_moved_aside(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "view.db"
    if harm == "foreign":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE other (x)")
        db.close()
    else:
        asyncio.run(apply_all(path, [some(1)]))
    if harm == "schema":
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 999")
        db.close()
    elif harm == "garbage":
        path.write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    elif harm == "header":
        path.write_bytes(path.read_bytes()[:100] + bytes(4_000) + path.read_bytes()[4_100:])
    elif harm == "marked":
        mark_damaged(path)

    async def main() -> None:
        view = View.open(path)
        assert view.positions() == {}
        assert await view.task(ids_of(1)[0]) is None
        await view.apply(some(1))
        assert await view.task(ids_of(1)[0]) is not None
        await view.close()
        assert path.with_name("view.db.aside").exists()
        again = View.open(path)  # it is moved aside only once
        assert again.positions() == {(TASKS, 0): 2, (RESULTS, 0): 2}
        await again.close()

    asyncio.run(main())


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ViewError, match="cannot be opened") as e:
        View.open(tmp_path / "file" / "view.db")
    assert e.value.remedy


def test_a_snapshot_can_be_opened_as_a_view(tmp_path: Path) -> None:
    async def main() -> None:
        view = View.open(tmp_path / "view.db")
        await view.apply(some(1))
        page, cursor = await view.tasks(TaskFilter(limit=3))
        await view.snapshot(tmp_path / "snap" / "one.db")
        with pytest.raises(Invalid, match="exists already"):
            await view.snapshot(tmp_path / "snap" / "one.db")
        await view.apply(some(2))
        await view.close()
        joined = View.restore(tmp_path / "other" / "view.db", tmp_path / "snap" / "one.db")
        assert joined.positions() == {(TASKS, 0): 2, (RESULTS, 0): 2}
        assert (await joined.tasks(TaskFilter(limit=3)))[0] == page
        with pytest.raises(Invalid, match="the view was rebuilt"):
            await joined.tasks(TaskFilter(cursor=cursor or ""))
        await joined.apply(some(2))
        await joined.close()

    asyncio.run(main())
    assert dump(tmp_path / "other" / "view.db") == dump(tmp_path / "view.db")
    assert sorted(p.name for p in (tmp_path / "snap").iterdir()) == ["one.db"]


def test_a_file_that_is_not_a_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "view.db"
    asyncio.run(apply_all(path, [some(1)]))
    before = dump(path)
    (tmp_path / "garbage").write_bytes(b"garbage" * 1_000)
    for wrong in ("garbage", "missing"):
        with pytest.raises(Invalid):
            View.restore(path, tmp_path / wrong)
    assert dump(path) == before


def test_old_closed_tasks_are_deleted(tmp_path: Path) -> None:
    """Tasks closed before the horizon are deleted; open and newer ones stay."""

    async def main() -> None:
        view = View.open(tmp_path / "view.db")
        for n in range(1, 11):
            await view.apply(some(n))
        retried = TaskFrame(VERSION, RETRIED, 0, [TaskRecord(b"r" * 16, b"")])
        await view.apply([RecordBatch(TASKS, 0, (11,), (Record(encode(retried)),))])
        ends = [Ended(b"r" * 16, 1, 2, 0, 5), Ended(b"r" * 16, 2, OK, 0, 6)]
        for offset, e in enumerate(ends, 11):
            frame = ResultFrame(VERSION, RETRIED, ENDPOINT, 0, [e])
            await view.apply([RecordBatch(RESULTS, 0, (offset,), (Record(encode(frame)),))])
        assert len((await view.task(b"r" * 16)).attempts) == 2  # type: ignore[union-attr]
        # The tasks, the retried one, and its call.
        assert await view.delete_older_than(6) == 5 * (SIZE - 1) + 1 + 1
        assert await view.task(b"r" * 16) is None
        for n in range(1, 11):
            states = await view.states(ids_of(n))
            assert len(states) == (1 if n < 6 else SIZE)
        listed, _ = await view.tasks(TaskFilter(owner="ann", limit=1000))
        assert len(listed) == 5 + 5 * SIZE
        assert (await view.tasks(TaskFilter(owner="bob")))[0] == []
        assert len(await view.open_tasks(ENDPOINT, -1, 100)) == 10
        assert await view.delete_older_than(6) == 0
        await view.apply(some(12))  # deleted calls can come again
        await view.close()

    asyncio.run(main())


def test_wait_until_the_view_has_reached_positions(tmp_path: Path) -> None:
    async def main() -> None:
        view = View.open(tmp_path / "view.db")
        assert await view.wait_for({}, 0)
        assert await view.wait_for({(TASKS, 3): 0}, 0)
        assert not await view.wait_for({(TASKS, 0): 2}, 0.01)
        waiting = asyncio.create_task(view.wait_for({(TASKS, 0): 2, (RESULTS, 0): 2}, 30))
        await asyncio.sleep(0)
        assert not waiting.done()
        await view.apply(some(1))
        assert await waiting
        gone = asyncio.create_task(view.wait_for({("oncue.reports", 0): 8}, 30))
        await asyncio.sleep(0)
        # Truncated: no batch will ever reach this offset.
        await view.skip_to({("oncue.reports", 0): 8, (TASKS, 0): 1})
        assert await gone
        assert view.positions() == {(TASKS, 0): 2, (RESULTS, 0): 2, ("oncue.reports", 0): 8}
        await view.close()
        for ask in (view.apply([]), view.task(b"x")):
            with pytest.raises(NotReady):
                await ask

    asyncio.run(main())


def test_queries_during_writes_see_whole_groups(tmp_path: Path) -> None:
    """A reader never sees part of a group."""

    async def main() -> None:
        view = View.open(tmp_path / "view.db")

        async def ask() -> None:
            for _ in range(60):
                n = len(await view.open_tasks(ENDPOINT, -1, 10_000))
                assert n <= 30
                states = await view.states(ids_of(1))
                assert len(states) in (0, SIZE)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for n in range(1, 31):
            await view.apply(some(n))
        await asyncio.gather(*asking)
        await view.close()

    asyncio.run(main())
