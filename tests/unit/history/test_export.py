"""Exports of a history, from a server that a list in memory stands in for. tests/e2e/test_history.py has a real one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from oncue.errors import Conflict, Invalid, NotFound, Unreachable
from oncue.history import export as module
from oncue.history.database import HistoryFile
from oncue.history.export import export
from oncue.history.schema import TABLES
from oncue.protocol.api import AttemptInfo, EventInfo, FailureInfo, TaskInfo

HOUR_US = 3_600_000_000
BEGAN_US = 1_800_000_000_000_000


class Pages:
    """A list of the API, newest first, in pages."""

    def __init__(self, time: str) -> None:
        self.items: list[Any] = []
        self.asked: list[tuple[str, int]] = []
        self.fail_after = 1_000_000
        self._time = time

    def page(self, *, cursor: str, limit: int, since_us: int) -> tuple[list[Any], str | None]:
        self.asked.append((cursor, since_us))
        if self.fail_after == 0:
            raise Unreachable("gone")
        self.fail_after -= 1
        if cursor and not cursor.isdigit():
            raise Invalid("cursor: the view was rebuilt since")
        below = int(cursor) if cursor else len(self.items)
        found = [n for n in range(below) if getattr(self.items[n], self._time) >= since_us]
        taken = found[::-1][:limit]
        return [self.items[n] for n in taken], str(taken[-1]) if len(found) > limit else None

    def count(self, *, since_us: int) -> Any:
        return SimpleNamespace(count=len(self.items), more=False)

    def get(self, task_id: str) -> TaskInfo:
        for task in self.items:
            if task.id == task_id:
                return task
        raise NotFound("there is no such task")


class Server:
    """What an export asks."""

    def __init__(self) -> None:
        self.tasks, self.events = Pages("accepted_us"), Pages("at_us")
        self.me = SimpleNamespace(server_id="one")
        self.rules = SimpleNamespace(list=list)

    def run(self, count: int, state: str = "succeeded", at_us: int = BEGAN_US) -> None:
        """Add events and their tasks."""
        for _ in range(count):
            n = len(self.tasks.items)
            event = {"specversion": "1.0", "id": f"e{n}", "source": "s", "type": "t", "data": {"n": n}}
            self.events.items.append(EventInfo(offset=n, event=event, at_us=at_us + n))
            self.tasks.items.append(task(n, state, at_us + n))


def task(n: int, state: str, at_us: int = BEGAN_US) -> TaskInfo:
    error = FailureInfo(type="ValueError", message=f"no memory for {n}") if state == "failed" else None
    ended = at_us + 2_000_000 if state not in ("running", "waiting") else 0
    return TaskInfo(
        id=f"{n:032x}",
        state=state,
        function="0" * 64,
        name="f",
        endpoint="local",
        owner="me",
        rule="gone",
        event=("s", f"e{n}"),
        accepted_us=at_us,
        started_us=at_us + 1_000_000,
        ended_us=ended,
        error=error,
        value={"n": n} if state == "succeeded" else None,
        has_value=state == "succeeded",
        attempts=[AttemptInfo(n=1, status=state, started_us=at_us, ended_us=ended, error=error)] if ended else [],
    )


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 5)
    monkeypatch.setattr(module, "ASKED", 3)


Read = Callable[..., list[Any]]


@pytest.fixture
def history(tmp_path: Path) -> Callable[..., Read]:
    """Exports, and returns a function that queries the file."""

    def run(server: Server, **options: bool) -> Read:
        file = HistoryFile(tmp_path / "runs.db")
        try:
            export(server, file, lambda *_: None, **options)  # type: ignore[arg-type]
        finally:
            file.close()
        db = sqlite3.connect(tmp_path / "runs.db")
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return lambda sql: db.execute(sql).fetchall()

    return run


def test_tasks_of_a_replay_are_told_from_those_of_the_first_time(history: Any) -> None:
    server = Server()
    server.run(2)
    server.tasks.items[1] = msgspec.structs.replace(server.tasks.items[1], replay="again", priority="low")

    read = history(server)

    assert read("SELECT replay, priority FROM tasks ORDER BY id") == [(None, "normal"), ("again", "low")]


def test_everything_is_written_with_what_it_refers_to(history: Any) -> None:
    server = Server()
    server.run(12)
    server.run(1, "failed")

    read = history(server)

    assert read("SELECT count(*) FROM events") == [(13,)]
    assert read("SELECT count(*) FROM tasks WHERE event IS NOT NULL AND rule = 'gone'") == [(13,)]
    assert read("SELECT state FROM rules") == [("removed",)]
    assert read("SELECT state, count(*) FROM outcomes GROUP BY state") == [("failed", 1), ("succeeded", 12)]
    assert read("SELECT ran_s, waited_s FROM tasks LIMIT 1") == [(1.0, 1.0)]
    found = "SELECT task FROM {0} JOIN {0}_fts ON {0}.rowid = {0}_fts.rowid WHERE {0}_fts MATCH 'memory'"
    assert read(found.format("outcomes")) == read(found.format("attempts")) == [(f"{12:032x}",)]


def test_a_second_export_reads_what_is_new_and_what_has_ended(history: Any) -> None:
    server = Server()
    server.run(8)
    server.run(2, "running")
    history(server)
    server.tasks.items[8] = task(8, "failed")
    server.run(3, at_us=BEGAN_US + HOUR_US)
    server.tasks.asked.clear()

    read = history(server)

    assert [since for _, since in server.tasks.asked] == [BEGAN_US + 9 - module.OVERLAP_US] * len(server.tasks.asked)
    assert read("SELECT state, count(*) FROM tasks GROUP BY state ORDER BY state") == [
        ("failed", 1),
        ("running", 1),
        ("succeeded", 11),
    ]
    assert read("SELECT count(*) FROM outcomes_fts WHERE outcomes_fts MATCH 'memory'") == [(1,)]


@pytest.mark.parametrize("server_id", ["one", "another"])
@pytest.mark.parametrize("pages", range(5))
def test_an_interrupted_export_goes_on_and_leaves_no_gap(history: Any, pages: int, server_id: str) -> None:
    server = Server()
    server.run(21)
    server.tasks.fail_after = server.events.fail_after = pages
    with pytest.raises(Unreachable):
        history(server)
    server.tasks.fail_after = server.events.fail_after = 1_000
    server.run(3, at_us=BEGAN_US + HOUR_US)
    server.me = SimpleNamespace(server_id=server_id)

    read = history(server)

    assert read("SELECT count(*) FROM tasks") == read("SELECT count(*) FROM events") == [(24,)]
    assert read("SELECT count(*) FROM tasks WHERE event IS NULL") == [(0,)]


def test_a_view_that_was_rebuilt_is_read_from_the_newest_again(history: Any, tmp_path: Path) -> None:
    server = Server()
    server.run(21)
    server.tasks.fail_after = 2
    with pytest.raises(Unreachable):
        history(server)
    with sqlite3.connect(tmp_path / "runs.db") as db:
        db.execute('UPDATE export_progress SET state = replace(state, \'"cursor":"\', \'"cursor":"x\')')
    server.tasks.fail_after = 1_000

    assert history(server)("SELECT count(*) FROM tasks") == [(21,)]


def test_many_open_tasks_are_found_by_reading_on_from_the_oldest(history: Any) -> None:
    server = Server()
    server.run(10, "waiting")
    history(server)
    for n in range(10):
        server.tasks.items[n] = task(n, "succeeded")
    server.run(3, at_us=BEGAN_US + HOUR_US)

    read = history(server)

    assert read("SELECT state, count(*) FROM tasks GROUP BY state") == [("succeeded", 13)]


def test_an_open_task_that_the_server_has_forgotten_is_marked(history: Any) -> None:
    server = Server()
    server.run(2, "waiting")
    history(server)
    server.tasks.items.clear()

    read = history(server)

    assert read("SELECT state, forgotten FROM tasks") == [("waiting", 1), ("waiting", 1)]


def test_another_server_s_history_is_not_mixed_in(history: Any) -> None:
    server, other = Server(), Server()
    server.run(3)
    history(server)
    other.run(3)
    other.events.items = [EventInfo(offset=0, event={"id": "x", "source": "y"}, at_us=BEGAN_US + HOUR_US)]

    with pytest.raises(Conflict, match="history of another server"):
        history(other)


def test_full_reads_everything_again(history: Any) -> None:
    server = Server()
    server.run(3)
    server.run(1, at_us=BEGAN_US + HOUR_US)
    history(server)
    server.tasks.items[0] = task(0, "failed")

    assert history(server)("SELECT count(*) FROM tasks WHERE state = 'failed'") == [(0,)]
    assert history(server, full=True)("SELECT count(*) FROM tasks WHERE state = 'failed'") == [(1,)]


@pytest.mark.parametrize("content", [b"no database" * 500, None])
def test_a_file_of_something_else_is_not_written(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "runs.db"
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE mine (x)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()

    with pytest.raises(Exception, match=r"something else|cannot be opened"):
        HistoryFile(path)

    assert path.read_bytes() == before


def test_odd_texts_and_numbers_are_stored(history: Any) -> None:
    server = Server()
    server.run(1)
    odd = {"path": "/a\x00b", "size": 1 << 80, "mtime": 1e300, "big": 1 << 200}
    event = {"id": "e", "source": "s", "type": "oncue.file.ready", "data": odd, "oncuetrigger": "t", "more": True}
    server.events.items.append(EventInfo(offset=1 << 62, event=event, at_us=BEGAN_US))

    read = history(server)

    assert read("SELECT path, size_bytes, modified_at FROM files") == [("/a\x00b", None, None)]
    assert read("SELECT extensions FROM events WHERE id = 'e'") == [('{"oncuetrigger":"t","more":true}',)]


def test_parquet_files_have_the_same_rows(history: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    from pyarrow import parquet

    from oncue.history.parquet import write_parquet

    server = Server()
    server.run(12)
    server.run(2, "failed")
    read = history(server)

    files = write_parquet(tmp_path / "runs.db", tmp_path / "files")

    assert [f.stem for f in files] == list(TABLES)
    found = {f.stem: parquet.read_table(f) for f in files}
    for name, table in TABLES.items():
        assert found[name].num_rows == read(f"SELECT count(*) FROM {name}")[0][0]
        assert found[name].column_names == list(table.columns)
    assert found["tasks"]["accepted_at"][0].as_py().timestamp() * 1e6 == BEGAN_US + 13
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)
    assert not list((tmp_path / "files").glob("*.part"))
