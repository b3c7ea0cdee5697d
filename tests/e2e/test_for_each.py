"""`for_each`: a task for each item of a list in an event, once however often it is told."""

from __future__ import annotations

from typing import Any

from tests.e2e.running import System

FUNCTIONS = """
def look(detector, scan):
    if detector == "broken":
        raise ValueError("no frames of broken")
    return f"{scan}/{detector}"
"""
RULES = """
triggers:
  - {name: visits, kind: webhook, verify: none, type: org.example.visit}
rules:
  - name: each-detector
    on: visits
    run:
      function: each.py:look
      for_each: "${data.detectors}"
      args: {detector: "${item.name}", scan: "${data.scan}"}
  - name: tell
    on: {done: each-detector, state: failed}
    run: {function: each.py:look, args: {detector: told, scan: "${data.args.detector}"}}
"""


def send(system: System, scan: int, detectors: Any) -> None:
    headers = {"webhook-id": f"scan-{scan}"}
    answer = system.http("POST", "/hooks/visits", {"scan": scan, "detectors": detectors}, headers, token=None)
    assert answer.status == 202, answer


def test_each_item_is_a_task_of_one_trace(shared: System) -> None:
    shared.write("each.py", FUNCTIONS)
    shared.write("each.yaml", RULES)
    shared.oncue("deploy", "each.yaml", "--yes")
    names = [*(f"d{n}" for n in range(200)), "broken"]  # an evaluator makes so many

    send(shared, 1, [{"name": name} for name in names])
    send(shared, 2, [])
    send(shared, 3, "d1")
    send(shared, 1, [{"name": name} for name in names])  # told twice
    send(shared, 4, [{"name": "d1"}])

    tasks = shared.await_tasks(202, rule="each-detector")
    wanted = [f"1/{name}" for name in names[:-1]] + ["4/d1"]
    done = [t["value"] for t in tasks if t["state"] == "succeeded"]
    assert sorted(done) == sorted(wanted)
    (told,) = shared.await_tasks(1, rule="tell")
    assert told["value"] == "broken/told"
    trace = shared.json("trace", told["id"])
    assert len(trace["tasks"]) == 202
    (letter,) = [x for x in shared.json("dead", "list") if x["rule"] == "each-detector"]
    assert letter["reason"] == "for_each: ${data.detectors} is not a list but 'd1'"
    info = shared.http("GET", "/v1/rules/each-detector").json
    assert (info["fired"], info["empty"]) == (202, 1)
    assert "1 firing without a task since start" in shared.oncue("rules", "show", "each-detector").stdout
