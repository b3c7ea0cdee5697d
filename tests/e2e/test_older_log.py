"""An older or emptied log under newer derived files: a backup was put back.

Nothing that is accepted afterwards may be hidden, and agents that know the newer log reconnect.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import System
from tests.e2e.running import PATIENCE_S
from tests.e2e.test_files import await_trigger, deploy, fired, renamed, rules

pytestmark = pytest.mark.embedded


def run_task(system: System, value: int) -> str:
    with system.client() as client:
        task = client.submit(pow, value, 2)
        assert task.result(PATIENCE_S) == value**2
        return str(task.id)


def task_ids(system: System) -> set[str]:
    return {task["id"] for task in system.tasks()}


def event_ids(system: System) -> list[str]:
    return [item["event"]["id"] for item in system.http("GET", "/v1/events?limit=100").json["items"]]


def emit(system: System, name: str) -> None:
    answer = system.http("POST", "/v1/events", {"type": "a", "source": "/b", "id": name})
    assert answer.status == 202, answer


def note(system: System) -> dict[str, Any]:
    return dict(json.loads((system.data / "diverged.json").read_text()))


@pytest.fixture
def saved(stopped: System) -> Path:
    """Return a copy of the log with one task and one event; the live one has more."""
    stopped.up("--workers", "1")
    run_task(stopped, 2)
    emit(stopped, "before")
    stopped.down()
    copy = stopped.folder / "saved-log"
    shutil.copytree(stopped.data / "log", copy)
    for value in (3, 4):  # several starts: claims, so that the agent knows a later epoch
        stopped.up("--workers", "1")
        run_task(stopped, value)
        emit(stopped, f"after-{value}")
        stopped.down()
    return copy


def put_back(system: System, copy: Path) -> None:
    shutil.rmtree(system.data / "log")
    shutil.copytree(copy, system.data / "log")


def topics_that_are_shorter(view: Path, newer: Path) -> list[str]:
    """Return the topics of which this view has applied fewer records than the newer one."""

    def positions(path: Path) -> dict[str, int]:
        with closing(sqlite3.connect(path)) as db:
            return dict(db.execute("SELECT topic, next FROM position"))

    own = positions(view)
    return [topic for topic, position in positions(newer).items() if own.get(topic, 0) < position]


def test_an_older_log_under_a_newer_view_hides_nothing(stopped: System, saved: Path) -> None:
    put_back(stopped, saved)
    stopped.up("--workers", "1")
    assert len(task_ids(stopped)) == 1, "what the log has"
    accepted = run_task(stopped, 5)
    emit(stopped, "now")
    assert accepted in task_ids(stopped)
    stopped.await_true(lambda: event_ids(stopped) == ["now", "before"], "the new event is visible")
    assert note(stopped)["missing"]["oncue.events"] == 2
    assert (Path(note(stopped)["kept"]) / "view.db").exists()
    assert "the log ends before records that the view has" in stopped.said()
    stopped.down()
    stopped.up("--workers", "1")
    assert accepted in task_ids(stopped)
    assert len(list((stopped.data / "aside").iterdir())) == 1, "set aside once"


def test_a_removed_log_under_a_view_hides_nothing(stopped: System, saved: Path) -> None:
    shutil.rmtree(stopped.data / "log")
    stopped.up("--workers", "1")
    assert task_ids(stopped) == set()
    emit(stopped, "now")
    assert run_task(stopped, 5) in task_ids(stopped)
    stopped.await_true(lambda: event_ids(stopped) == ["now"], "the new event is visible")
    assert "the log is another one" in note(stopped)["reason"]


def test_a_log_with_other_records_at_the_same_offsets_is_noticed(stopped: System, saved: Path) -> None:
    newer = stopped.folder / "view.db"
    shutil.copy(stopped.data / "view.db", newer)
    put_back(stopped, saved)
    (stopped.data / "view.db").unlink()
    stopped.up("--workers", "1")
    tasks = 1
    while shorter := topics_that_are_shorter(stopped.data / "view.db", newer):
        assert tasks < 200, shorter
        for value in range(tasks, tasks + 8):
            emit(stopped, f"other-{value}")
        with stopped.client() as client:
            for value in range(8):
                assert client.submit(pow, value, 3).result(PATIENCE_S) == value**3
        tasks += 8
        stopped.down()
        stopped.up("--workers", "1")  # a claim; and the agent's reports, of which there are more or fewer
    stopped.down()
    shutil.copy(newer, stopped.data / "view.db")
    stopped.up("--workers", "1")
    assert len(task_ids(stopped)) == tasks
    assert len(event_ids(stopped)) == tasks
    assert "another record" in note(stopped)["reason"]


def test_files_that_fired_after_the_older_logs_end_fire_again(stopped: System) -> None:
    folder = stopped.folder / "incoming"
    stopped.up("--workers", "1")
    deploy(stopped, "det", rules("det", folder))
    await_trigger(stopped, "det")
    renamed(folder, "a", 1)
    assert fired(stopped, "det-measure", 1) == ["a.raw"]
    stopped.down()
    saved = stopped.folder / "saved-log"
    shutil.copytree(stopped.data / "log", saved)
    stopped.up("--workers", "1")
    await_trigger(stopped, "det")
    renamed(folder, "b", 2)
    stopped.await_tasks(2, rule="det-measure")
    stopped.down()
    put_back(stopped, saved)
    stopped.up("--workers", "1")
    assert fired(stopped, "det-measure", 2) == ["a.raw", "b.raw"], "b again, a not twice"


def test_doctor_says_that_the_log_was_older_until_the_note_is_deleted(stopped: System, saved: Path) -> None:
    put_back(stopped, saved)
    stopped.up("--workers", "1")
    said = stopped.oncue("doctor", code=None).stdout
    assert "the log ends before records that the view has" in said
    assert str(stopped.data / "diverged.json") in said
    (stopped.data / "diverged.json").unlink()
    assert "the log ends before" not in stopped.oncue("doctor", code=None).stdout


def test_another_store_of_blobs_is_told(stopped: System) -> None:
    def blobs() -> str:
        return str(stopped.http("GET", "/health/ready").json["checks"]["blobs"])

    stopped.up("--no-endpoint")
    assert blobs() == "ok"
    stopped.down()
    (stopped.data / "blobs").rename(stopped.folder / "former")  # its disk is not mounted
    for _ in range(2):
        stopped.up("--no-endpoint")
        assert "another store of blobs" in blobs()
        assert "another store of blobs" in stopped.oncue("doctor", code=None).stdout
        stopped.down()
    shutil.rmtree(stopped.data / "blobs")
    (stopped.folder / "former").rename(stopped.data / "blobs")
    stopped.up("--no-endpoint")
    assert blobs() == "ok"
