"""An event sent twice runs its function once, also across a restart."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.running import PATIENCE_S, System

RULES = """\
rules:
  - name: note
    on: {type: twice}
    run: {function: note.py:note, args: {path: "${data.path}", text: "${id}"}}
"""
BATCH = """\
  - name: both
    on: {type: twice}
    batch: {key: all, count: 2}
    run: {function: note.py:note, args: ["${first.data.path}", w]}
"""
NOTE = """\
def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")
"""


def send_event(system: System, event_id: str, extensions: dict[str, str | int | bool]) -> None:
    with system.client() as client:
        client.emit(
            type="twice",
            source="a/test",
            id=event_id,
            data={"path": str(system.folder / "noted")},
            extensions=extensions,
        )


@pytest.mark.parametrize("stored_time", [True, False])
def test_a_repeated_event_runs_once(stopped: System, stored_time: bool) -> None:
    stopped.write("note.py", NOTE)
    rules = stopped.write("rules.yaml", RULES)
    stopped.up("--workers", "1")
    stopped.oncue("deploy", str(rules), "--yes")
    ext: dict[str, str | int | bool] = {"oncuetimems": str(time.time_ns() // 1_000_000)} if stored_time else {}
    send_event(stopped, "a", ext)
    send_event(stopped, "a", ext)
    send_event(stopped, "b", ext)
    stopped.await_tasks(2, rule="note")
    stopped.down()
    stopped.up("--workers", "1")
    send_event(stopped, "a", ext)
    send_event(stopped, "c", ext)
    stopped.await_tasks(3, rule="note")
    with stopped.client() as client:  # behind the others, on the one worker
        assert client.submit(abs, -1).result(PATIENCE_S) == 1
    # Each ran once. A task that may be a repeat is looked up in the view first, so a later one may overtake it.
    assert sorted((stopped.folder / "noted").read_text().split()) == ["a", "b", "c"]


def test_a_repeated_event_counts_once(stopped: System) -> None:
    """Repeated within one request and in later ones; also for a stateful rule."""
    stopped.write("note.py", NOTE)
    rules = stopped.write("rules.yaml", RULES + BATCH)
    stopped.up("--workers", "1")
    stopped.oncue("deploy", str(rules), "--yes")

    def send(*ids: str) -> None:
        path = str(stopped.folder / "noted")
        events = [
            {"specversion": "1.0", "type": "twice", "source": "a/test", "id": i, "data": {"path": path}} for i in ids
        ]
        kind = {"Content-Type": "application/cloudevents-batch+json"}
        assert stopped.http("POST", "/v1/events", json.dumps(events).encode(), kind).status == 202

    def fired() -> dict[str, int]:
        return {r["name"]: r["fired"] for r in stopped.http("GET", "/v1/rules").json}

    send("a", "a")
    send("a", "a", "b")
    send("c", "c", "a")
    stopped.await_tasks(3, rule="note")
    stopped.await_true(lambda: fired()["note"] == 3, "each is counted once")
    send("d")
    stopped.await_tasks(4, rule="note")
    stopped.await_true(lambda: fired()["note"] == 4, "later events are counted")
    stopped.await_true(lambda: fired()["both"] == len(stopped.tasks(rule="both")) > 0, "windows as well")
    with stopped.client() as client:  # behind the others, on the one worker
        assert client.submit(abs, -1).result(PATIENCE_S) == 1
    noted = (stopped.folder / "noted").read_text().split()
    assert sorted(n for n in noted if n != "w") == ["a", "b", "c", "d"]
    metrics = stopped.http("GET", "/metrics").body.decode()
    assert 'oncue_rule_fired_total{rule="note"} 4.0' in metrics
