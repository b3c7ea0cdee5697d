"""Joins on one server that is killed, their deadlines, dead letters and `overdue` events."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.running import System

FUNCTION = """
def collect(**values):
    return values
"""
RULES = """
triggers:
  - {name: door, kind: webhook, verify: none, type: org.example.door}
rules:
  - name: whole
    on: door
    join: {key: "${data.scan}", list: [raw, dark, flat], by: "${data.part}", deadline: 1h}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {parts: "${each.data.part}", missing: "${missing}"}}
  - name: hasty
    on: {type: org.example.hasty}
    join: {key: "${data.scan}", count: 3, deadline: 1s}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {count: "${count}", missing: "${missing}"}}
  - name: both
    join:
      key: "${data.scan}"
      all: {scan: door, meta: {on: {type: org.example.meta}}}
      deadline: 1h
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {part: "${join.scan.data.part}", kev: "${join.meta.data.kev}"}}
  - name: unseen
    absent: {key: "${data.scan}", after: {on: {type: org.example.meta}}, expect: {on: {type: never}}, within: 1s}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {kev: "${data.kev}"}}
  - name: tell
    on: {overdue: hasty}
    retry: {max: 5, base: 10ms, on: [lost]}
    run: {function: collect.py:collect, args: {key: "${data.key}", missing: "${data.missing} of ${data.expected}"}}
"""


def send(system: System, scan: str, *parts: str) -> None:
    for part in parts:
        data = {"scan": scan, "part": part.rstrip("2")}
        answer = system.http("POST", "/hooks/door", data, {"webhook-id": f"{scan}-{part}"}, token=None)
        assert answer.status == 202, answer


def emit(system: System, *events: dict[str, Any]) -> None:
    given = [{"specversion": "1.0", "source": "/x", "id": str(n)} | event for n, event in enumerate(events)]
    batch = {"Content-Type": "application/cloudevents-batch+json"}
    answer = system.http("POST", "/v1/events", given, batch)
    assert answer.status == 202, answer


def values(system: System, rule: str, count: int = 1) -> list[Any]:
    tasks = system.await_tasks(count, rule=rule)
    return [system.http("GET", f"/v1/tasks/{t['id']}").json["value"] for t in tasks]


def test_a_join_outlives_kills_and_its_deadline_is_told(stopped: System) -> None:
    stopped.up("--workers", "1")
    stopped.write("collect.py", FUNCTION)
    stopped.write("door.yaml", RULES)
    stopped.oncue("deploy", "door.yaml", "--yes")
    send(stopped, "b", "raw", "flat", "raw2")
    hasty = {"type": "org.example.hasty", "data": {"scan": "a"}}
    emit(stopped, hasty, hasty, {"type": "org.example.meta", "data": {"scan": "b", "kev": 8}})
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "1")

    # One is missing at the deadline: a dead letter names it, and an event that starts a rule, once.
    assert values(stopped, "tell") == [{"key": "a", "missing": "1 of 3"}]
    (letter,) = stopped.await_true(lambda: stopped.json("dead", "list"), "the dead letter")
    assert letter["reason"] == "join: 2 of 3: 1 missing within 1s (key 'a')"
    stopped.oncue("dead", "retry", str(letter["id"]))
    assert values(stopped, "hasty") == [{"count": 2, "missing": 1}]

    # Events of two triggers; an event after which none came.
    assert values(stopped, "both") == [{"part": "raw", "kev": 8}]
    assert values(stopped, "unseen") == [{"kev": 8}]

    # The other one waits, says for what, and fires with the last.
    stopped.await_true(lambda: stopped.http("GET", "/v1/rules/whole").json["waiting"] == 2, "two have come")
    event = {"type": "org.example.door", "source": "/x", "oncuetrigger": "door", "id": "new"}
    stopped.write("new.json", json.dumps(event | {"data": {"scan": "b", "part": "raw"}}))
    found = stopped.oncue("rules", "explain", "whole", "new.json").stdout
    assert "2 of 3: missing dark" in found
    send(stopped, "b", "dark")
    assert values(stopped, "whole") == [{"parts": ["raw", "flat", "dark"], "missing": []}]
