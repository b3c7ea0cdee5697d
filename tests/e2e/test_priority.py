"""Priorities with real processes: what waits at server and agent, and what both have after kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.running import PATIENCE_S, System

pytestmark = pytest.mark.embedded
SOURCE = """
import pathlib
import time


def note(path, word, gate):
    while not pathlib.Path(gate).exists():
        time.sleep(0.01)
    with open(path, "a") as f:
        print(word, file=f)
"""
RULES = """
rules:
  - name: urgent
    on: {type: scan.done}
    priority: live
    run: {function: "work.py:note", args: {path: "${data.path}", gate: "${data.gate}", word: rule}}
"""


def test_live_tasks_pass_those_that_wait_also_after_kill_9(stopped: System, tmp_path: Path) -> None:
    stopped.write("work.py", SOURCE)
    stopped.write("urgent.yaml", RULES)
    stopped.up("--workers", "1")
    stopped.await_connected()
    stopped.oncue("functions", "register", "work.py:note")
    stopped.oncue("deploy", "urgent.yaml", "--yes")
    out, gate = tmp_path / "out", tmp_path / "gate"
    given = {"path": str(out), "gate": str(gate)}
    for word, priority in [
        ("first", "live"),  # holds the worker, and is lost with it
        *((f"low {n}", "low") for n in range(4)),
        *((f"normal {n}", "normal") for n in range(2)),
    ]:
        request = {"function": "note", "kwargs": given | {"word": word}, "priority": priority}
        answer = stopped.http("POST", "/v1/tasks", request)
        assert (answer.status, answer.json["priority"]) == (202, priority), answer
        stopped.await_true(lambda: stopped.tasks(state="running"), "the first task runs")
    words = [w for name, value in given.items() for w in ("--arg", f"{name}={value}")]
    words = ["invoke", "note", *words, "--arg", "word=live", "--priority", "live", "--no-wait"]
    task = stopped.oncue(*words).stdout.strip()
    assert "priority:  live" in stopped.oncue("tasks", "show", task).stdout

    for process in stopped.note():
        process.kill()
    stopped.up("--workers", "1")
    stopped.await_connected()
    event = {"type": "scan.done", "source": "/x", "id": "1", "specversion": "1.0", "data": given}
    stopped.http("POST", "/v1/events", event, {"Content-Type": "application/cloudevents+json"})
    stopped.await_true(lambda: any(t["sent"] for t in stopped.tasks(rule="urgent")), "the rule's task is at the agent")
    stopped.await_true(lambda: stopped.tasks(state="running"), "the first of them runs")
    gate.write_text("")

    stopped.await_true(lambda: out.exists() and len(out.read_text().splitlines()) == 8, "all have run", PATIENCE_S)
    lines = out.read_text().splitlines()
    assert lines == ["live", "rule", "normal 0", "normal 1", "low 0", "low 1", "low 2", "low 3"]
