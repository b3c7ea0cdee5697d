"""Stateful rules on one server, fed by a webhook.

The server is killed within a window, and the rule is changed and explained.
"""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.running import System

FUNCTION = """
def collect(ns, count=0):
    return {"ns": ns, "count": count}
"""


def rule_file(batch: str, more: str = "") -> str:
    return f"""
triggers:
  - {{name: door, kind: webhook, verify: none, type: org.example.door}}
rules:
  - name: collected
    on: door
    {more}
    batch: {batch}
    run: {{function: collect.py:collect, args: {{ns: "${{each.data.n}}", count: "${{count}}"}}}}
"""


def deploy(system: System, text: str) -> None:
    system.write("collect.py", FUNCTION)
    system.write("door.yaml", text)
    system.oncue("deploy", "door.yaml", "--yes")


def send_events(system: System, *numbers: int, **data: Any) -> None:
    for n in numbers:
        answer = system.http("POST", "/hooks/door", {"n": n} | data, {"webhook-id": f"event-{n}"}, token=None)
        assert answer.status == 202, answer


def rule_of(system: System) -> Any:
    return system.http("GET", "/v1/rules/collected").json


def await_waiting(system: System, count: int) -> None:
    system.await_true(lambda: rule_of(system)["waiting"] == count, f"{count} events wait")


def values(system: System, count: int) -> list[Any]:
    tasks = sorted(system.await_tasks(count, rule="collected"), key=lambda t: t["accepted_us"])
    return [system.http("GET", f"/v1/tasks/{t['id']}").json["value"] for t in tasks]


def test_a_batch_fires_once_with_all_events_after_a_kill_within_its_window(stopped: System) -> None:
    stopped.up("--workers", "1")
    deploy(stopped, rule_file("{count: 6}", "dedupe: {ttl: 1h}"))
    send_events(stopped, 1, 2, 3)
    await_waiting(stopped, 3)
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "1")
    send_events(stopped, 2, 3)  # the sender does not know that they were accepted
    send_events(stopped, 4, 5)
    await_waiting(stopped, 5)
    # The view is derived; the windows are not lost with it.
    stopped.down()
    for path in stopped.data.glob("view.db*"):
        path.unlink()
    stopped.up("--workers", "1")
    await_waiting(stopped, 5)  # on Kafka they are read from the log after the start
    send_events(stopped, 6)
    assert values(stopped, 1) == [{"ns": [1, 2, 3, 4, 5, 6], "count": 6}]
    assert rule_of(stopped)["waiting"] == 0


def test_an_open_window_is_shown_and_a_change_of_the_rule_releases_it(stopped: System) -> None:
    stopped.up("--workers", "1")
    deploy(stopped, rule_file("{count: 100, wait: 1h}", 'dedupe: {key: "${data.n}", ttl: 10m}'))
    send_events(stopped, 1, 2)
    await_waiting(stopped, 2)
    knocked = stopped.http("POST", "/hooks/door", {"n": 1}, {"webhook-id": "another"}, token=None)
    assert knocked.status == 202
    info = stopped.await_true(lambda: (r := rule_of(stopped))["suppressed"] == 1 and r, "a double was seen")
    assert (info["windows"], info["memory"]) == (1, "dedupe by ${data.n} for 10m, batch of 100 events or 1h")
    listed = stopped.oncue("rules", "list").stdout
    assert "1 open window with 2 events" in listed
    assert "1 dropped since start" in listed
    events = stopped.json("events", "list")
    offset = min(e["offset"] for e in events)
    found = stopped.oncue("rules", "explain", "collected", str(offset)).stdout
    assert "collected does not fire" in found
    assert " s ago, ttl 10m, 1 suppressed since" in found
    new = {"type": "org.example.door", "source": "/x", "data": {"n": 3}, "oncuetrigger": "door", "id": "new"}
    stopped.write("new.json", json.dumps(new))
    found = stopped.oncue("rules", "explain", "collected", "new.json").stdout
    assert (
        "collected fires: it goes into a batch: 2 of 100 events in the open window, closes in 60 min at the latest"
        in found
    )
    text = stopped.http("GET", "/metrics").body.decode()
    assert 'oncue_rule_windows_open{rule="collected"} 1.0' in text
    assert 'oncue_rule_suppressed_total{rule="collected"} 1.0' in text
    # Other limits: the old window fires as it is, and the next one is by the new ones. The dedupe is the same.
    deploy(stopped, rule_file("{count: 2}", 'dedupe: {key: "${data.n}", ttl: 10m}'))
    assert values(stopped, 1) == [{"ns": [1, 2], "count": 2}]
    send_events(stopped, 2, 7, 8)
    assert values(stopped, 2) == [{"ns": [1, 2], "count": 2}, {"ns": [7, 8], "count": 2}]
