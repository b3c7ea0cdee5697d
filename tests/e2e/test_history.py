"""A history exported from a running server: it has what the API tells, and Datasette opens it."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from oncue.history.rows import time_text
from tests.e2e.running import System, request
from tests.ports import free_port

FUNCTIONS = """
def weigh(n):
    if n == 3:
        raise ValueError("the sample slipped off the pin")
    return {"n": n}
"""
RULES = """
rules:
  - {{name: {0}-weigh, on: {{type: {0}.done}}, run: {{function: weigh.py:weigh, args: {{n: "${{data.n}}"}}}}}}
  - {{name: {0}-again, on: {{done: {0}-weigh, state: succeeded}},
     run: {{function: weigh.py:weigh, args: {{n: "${{data.value.n}}"}}}}}}
  - {{name: {0}-later, on: {{type: {0}.later}},
     run: {{function: weigh.py:weigh, endpoint: {0}, args: {{n: "${{data.n}}"}}}}}}
"""
_number = itertools.count()


def began(system: System) -> str:
    """Deploy rules, and let tasks of all kinds run; return the name that they have."""
    name = f"hist{next(_number)}"
    system.http("POST", "/v1/endpoints", {"name": name, "public_key": name.ljust(40, "x")})
    system.write("weigh.py", FUNCTIONS)
    system.write(f"{name}.yaml", RULES.format(name))
    system.oncue("deploy", f"{name}.yaml", "--yes")
    emit(system, f"{name}.done", *range(1, 5))
    emit(system, f"{name}.later", 1)
    system.await_tasks(4, rule=f"{name}-weigh")
    system.await_tasks(3, rule=f"{name}-again")
    system.await_true(lambda: system.tasks(rule=f"{name}-later"), "a task that waits")
    return name


def emit(system: System, kind: str, *numbers: int) -> None:
    for n in numbers:
        event = {"type": kind, "source": "/hist", "id": f"{kind}-{n}", "data": {"n": n}}
        assert system.http("POST", "/v1/events", event).status == 202


def export(system: System, path: Path, *words: str) -> Any:
    return system.json("history", "export", str(path), *words)


def rows(path: Path, sql: str, *given: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        return db.execute(sql, given).fetchall()
    finally:
        db.close()


def test_an_export_has_what_the_server_tells_and_the_next_one_what_changed(shared: System, tmp_path: Path) -> None:
    name = began(shared)
    path = tmp_path / "runs.db"

    first = export(shared, path)

    of_rules = "SELECT id, state, rule, accepted_at FROM tasks WHERE rule LIKE ? ORDER BY id"
    told = [t for rule in ("weigh", "again", "later") for t in shared.tasks(rule=f"{name}-{rule}")]
    assert rows(path, of_rules, f"{name}-%") == sorted(
        (t["id"], t["state"], t["rule"], time_text(t["accepted_us"])) for t in told
    )
    assert first["added"]["tasks"] == first["tables"]["tasks"] >= 8
    assert path.stat().st_mode & 0o077 == 0
    chained = (
        "SELECT json_extract(events.data, '$.n') FROM tasks JOIN tasks first ON tasks.after = first.id"
        " JOIN events ON first.event = events.offset WHERE tasks.rule = ? ORDER BY 1"
    )
    assert rows(path, chained, f"{name}-again") == [(1,), (2,), (4,)]
    errors = "SELECT count(*) FROM outcomes WHERE rowid IN (SELECT rowid FROM outcomes_fts WHERE outcomes_fts MATCH ?)"
    assert rows(path, errors, "slipped pin")[0][0] >= 1

    waiting = shared.tasks(rule=f"{name}-later")[0]["id"]
    shared.oncue("tasks", "cancel", waiting)
    shared.await_tasks(1, rule=f"{name}-later")
    emit(shared, f"{name}.done", 5)
    shared.await_tasks(4, rule=f"{name}-again")
    second = export(shared, path)

    assert second["added"]["tasks"] >= 2
    assert second["added"]["outcomes"] >= 3
    assert rows(path, "SELECT state FROM outcomes WHERE task = ?", waiting) == [("cancelled",)]
    found = shared.json(
        "history", "query", f"SELECT count(*) AS n FROM tasks WHERE rule LIKE '{name}%'", "--db", str(path)
    )
    assert found == [{"n": 10}]


@pytest.mark.embedded
def test_datasette_serves_an_exported_history(shared: System, tmp_path: Path) -> None:
    if find_spec("datasette") is None:
        pytest.skip("needs Datasette: pip install datasette")
    name = began(shared)
    path = tmp_path / "runs.db"
    export(shared, path)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "datasette", "serve", str(path), "-h", "127.0.0.1", "-p", str(port)]
    served = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        shared.await_true(lambda: _answers(url), "Datasette")

        tasks = request(url, "GET", f"/runs/tasks.json?_shape=array&rule={name}-weigh&_labels=on").json
        found = request(url, "GET", f"/runs/outcomes.json?_shape=array&_search={quote('slipped pin')}").json
        page = request(url, "GET", "/runs/tasks")

        assert {t["state"] for t in tasks} == {"succeeded", "failed"}
        assert all(json.dumps(t["event"]) and t["rule"]["value"] == f"{name}-weigh" for t in tasks)
        assert {f["error_type"] for f in found} == {"ValueError"}
        assert page.status == 200
    finally:
        served.terminate()
        served.wait()


def _answers(url: str) -> bool:
    try:
        return request(url, "GET", "/-/versions.json").status == 200
    except OSError:
        return False
