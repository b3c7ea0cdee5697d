"""Revoked endpoints report it, stay refused, and return with new keys."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from oncue.errors import TaskRefused
from tests.e2e.running import PATIENCE_S, System

RULES = """
rules:
  - {name: gone, on: {type: gone}, run: {function: work.py:double, endpoint: away, args: {x: 1}}}
"""


def test_register_or_a_start_restores_a_revoked_local_endpoint(stopped: System) -> None:
    stopped.up("--workers", "1")
    stopped.await_connected()
    key = stopped.data / "endpoints" / "local" / "agent.key"
    first = key.read_text()
    stopped.oncue("endpoints", "revoke", "local", "--yes")
    found = [f for f in stopped.json("doctor", code=1) if f["check"] == "endpoint local"]
    assert [(f["ok"], "oncue endpoint register local" in f["remedy"]) for f in found] == [(False, True)]
    stopped.down()

    stopped.up("--workers", "1")
    stopped.await_connected()
    second = key.read_text()
    assert second != first
    assert all(f["ok"] for f in stopped.json("doctor", code=0) if f["check"] == "endpoint local")

    stopped.oncue("endpoints", "revoke", "local", "--yes")
    stopped.oncue("endpoint", "register", "local", "--workers", "1")
    assert key.read_text() not in (first, second)
    stopped.await_connected()  # the server starts its agent again


def test_the_start_of_a_revoked_endpoint_fails(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "away"
    shared.oncue("endpoint", "register", "gone", "--dir", str(folder), "--workers", "1")
    shared.oncue("endpoints", "revoke", "gone", "--yes")
    output = shared.oncue("endpoint", "start", "gone", "--dir", str(folder), "--detach", code=1).stderr
    assert "it was revoked" in output
    assert f"→ register the endpoint again: oncue endpoint register gone --dir {folder}" in output
    assert "Traceback" not in output
    status = json.loads(shared.oncue("endpoint", "status", "gone", "--dir", str(folder), "--json").stdout)
    assert not status["running"]
    assert status["status"]["state"] == "refused"
    assert "it was revoked" in status["status"]["why"]
    assert f"oncue endpoint register gone --dir {folder}" in status["status"]["remedy"]
    shared.oncue("endpoint", "register", "gone", "--dir", str(folder), "--workers", "1")
    shared.oncue("endpoint", "start", "gone", "--dir", str(folder), "--detach")
    shared.await_connected("gone")
    assert shared.json("endpoint", "stop", "gone", "--dir", str(folder))["name"] == "gone"
    assert shared.json("endpoints", "revoke", "gone", "--yes")["revoked"]


def test_a_failed_register_leaves_nothing_behind(shared: System, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    shared.oncue("endpoint", "register", "no name", "--dir", str(folder), code=2)
    shared.oncue("endpoint", "register", "fine", "--dir", str(folder), code=5, env={"ONCUE_TOKEN": "wrong"})
    shared.oncue("endpoint", "register", "local", "--dir", str(folder), code=1)
    assert not list(tmp_path.iterdir())


def test_the_tasks_of_a_revoked_endpoint_end(stopped: System, tmp_path: Path) -> None:
    stopped.up("--no-endpoint")
    stopped.oncue("endpoint", "register", "lab", "--dir", str(tmp_path / "lab"), "--workers", "1")
    stopped.oncue("endpoint", "start", "lab", "--dir", str(tmp_path / "lab"), "--detach")
    stopped.await_connected("lab")
    stopped.oncue("endpoint", "register", "away", "--dir", str(tmp_path / "away"), "--workers", "1")
    with stopped.client() as client:
        running = client.submit(time.sleep, 600, endpoint="lab")
        queued = [client.submit(abs, -i, endpoint="lab") for i in range(5)]
        waiting = client.map(abs, range(2_500), endpoint="away")
        stopped.await_true(lambda: running.status() == "running", "the task runs")
        for name in ("lab", "away"):
            stopped.oncue("endpoints", "revoke", name, "--yes")
        for task in (running, *queued, waiting[0], waiting[-1]):
            with pytest.raises(TaskRefused, match="was revoked"):
                task.result(PATIENCE_S)
    assert stopped.tasks(state="open") == []
    assert {t["state"] for t in stopped.tasks()} == {"refused"}
    status = ("endpoint", "status", "lab", "--dir", str(tmp_path / "lab"))
    stopped.await_true(lambda: not stopped.json(*status)["running"], "its agent has ended: it is refused")


@pytest.mark.embedded
def test_a_server_killed_while_it_ends_the_tasks_ends_the_rest_later(stopped: System, tmp_path: Path) -> None:
    stopped.up("--no-endpoint")
    stopped.oncue("endpoint", "register", "away", "--dir", str(tmp_path / "away"), "--workers", "1")
    with stopped.client() as client:
        client.map(abs, range(30_000), endpoint="away")
    stopped.await_true(lambda: stopped.json("endpoints", "show", "away")["waiting"] == 30_000, "they wait")
    asked = stopped.start("endpoints", "revoke", "away", "--yes")
    stopped.await_true(lambda: stopped.tasks(state="refused"), "some have ended")
    stopped.server.kill()
    asked.communicate(timeout=PATIENCE_S)
    stopped.up("--no-endpoint")
    stopped.await_true(lambda: not stopped.tasks(state="open"), "all have ended")


def test_every_use_of_a_revoked_endpoint_reports_it(stopped: System, tmp_path: Path) -> None:
    """The agent, also after a server restart; commands, tasks and rules."""
    stopped.up("--no-endpoint")
    folders = {name: str(tmp_path / name) for name in ("live", "away")}
    for name, folder in folders.items():
        stopped.oncue("endpoint", "register", name, "--dir", folder, "--workers", "1")
    stopped.oncue("endpoint", "start", "live", "--dir", folders["live"], "--detach")
    stopped.await_connected("live")
    stopped.write("work.py", "def double(x):\n    return 2 * x\n")
    stopped.write("gone.yaml", RULES)
    stopped.oncue("deploy", "gone.yaml", "--yes")
    for name in folders:
        stopped.oncue("endpoints", "revoke", name, "--yes")

    def status(name: str) -> str:
        return stopped.oncue("endpoint", "status", name, "--dir", folders[name]).stdout

    stopped.await_true(lambda: "refused" in status("live"), "the agent is refused")
    for name, state in (("live", "refused"), ("away", "revoked")):
        assert state in status(name)
        assert f"oncue endpoint register {name} --dir {folders[name]}" in status(name)
        output = stopped.oncue("invoke", "work.py:double", "--arg", "x:=1", "--endpoint", name, code=4).stderr
        assert f"the endpoint '{name}' was revoked" in output
        assert f"oncue endpoint register {name}" in output
    stopped.oncue("events", "emit", "--type", "gone", "--source", "/gone", "--data", "{}")
    (letter,) = stopped.await_true(lambda: stopped.json("dead", "list"), "a dead letter")
    assert "the endpoint 'away' was revoked" in letter["reason"]
    stopped.down()
    stopped.up("--no-endpoint")  # a server that has never seen these keys
    output = stopped.oncue("endpoint", "start", "away", "--dir", folders["away"], "--detach", code=1).stderr
    assert "it was revoked" in output
