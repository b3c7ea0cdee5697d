"""Operators that wait: events of an open window, and after a delay, survive kill -9."""

from __future__ import annotations

from typing import Any

from tests.e2e.running import System

FUNCTION = """
def collect(ns):
    return ns
"""
RULES = """
triggers:
  - {name: door, kind: webhook, verify: none, type: org.example.door}
rules:
  - name: windows
    on: door
    window: {tumbling: 10s, time: "${data.n}", late: 30m}
    run: {function: collect.py:collect, args: {ns: "${each.data.n}"}}
  - name: ordered
    on: door
    order_by: {by: "${data.n}", from: 1}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {ns: "${data.n}"}}
  - name: later
    on: door
    match: {data.n: 1}
    AFTER
    run: {function: collect.py:collect, args: {ns: ["${data.n}"]}}
"""


def deploy(system: System, after: str) -> None:
    system.write("collect.py", FUNCTION)
    system.write("door.yaml", RULES.replace("AFTER", after))
    system.oncue("deploy", "door.yaml", "--yes")


def send(system: System, *numbers: int) -> None:
    for n in numbers:
        answer = system.http("POST", "/hooks/door", {"n": n}, {"webhook-id": f"event-{n}"}, token=None)
        assert answer.status == 202, answer


def waiting(system: System, rule: str) -> Any:
    info = system.http("GET", f"/v1/rules/{rule}").json
    return info["waiting"], info["closes_us"]


def values(system: System, rule: str, count: int) -> list[Any]:
    return [t["value"] for t in system.await_tasks(count, rule=rule)]


def test_what_waits_survives_a_kill_and_a_change(stopped: System) -> None:
    stopped.up("--workers", "1")
    deploy(stopped, "after: 2d")
    send(stopped, 1, 2)
    stopped.await_true(lambda: waiting(stopped, "windows")[0] == 2, "two events wait for their window")
    _, fires_us = stopped.await_true(lambda: (w := waiting(stopped, "later"))[0] == 1 and w, "one event waits")
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "1")
    send(stopped, 1, 2)  # the sender does not know that they were accepted
    send(stopped, 5_000, 3)  # the first closes windows that ended half an hour before; so the other is late

    assert values(stopped, "windows", 1) == [[1, 2]]
    stopped.await_true(lambda: stopped.http("GET", "/v1/rules/windows").json["suppressed"] >= 1, "one was late")
    assert sorted(values(stopped, "ordered", 3)) == [1, 2, 3]
    assert waiting(stopped, "ordered")[0] == 1
    blocked = stopped.await_true(
        lambda: [e["offset"] for e in stopped.json("events", "list") if e["event"]["data"] == {"n": 5_000}],
        "it is listed",
    )
    assert "it waits for 4 to 4,999" in stopped.oncue("rules", "explain", "ordered", str(blocked[0])).stdout
    deploy(stopped, "after: 5d")
    send(stopped, 6_000)
    stopped.await_true(lambda: waiting(stopped, "windows")[0] == 2, "what came after the deploy waits")
    assert waiting(stopped, "later") == (1, fires_us)  # of the event that waits already
    offset = min(e["offset"] for e in stopped.json("events", "list"))
    assert "later fires: it waits, and fires in 4" in stopped.oncue("rules", "explain", "later", str(offset)).stdout
    deploy(stopped, "")
    assert values(stopped, "later", 1) == [[1]]
    assert waiting(stopped, "later")[0] == 0
