"""A deleted view is rebuilt from the log, with the same answers."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from oncue.client import Retry
from tests.e2e.running import PATIENCE_S, System

LISTS = ("/v1/tasks", "/v1/events", "/v1/functions", "/v1/dead", "/v1/tokens", "/v1/deployments/all")
#: True of the running server only, or counted since its start.
LIVE = {"since_us", "fired", "emitted", "last_us", "busy", "workers", "host", "agent_version", "python", "state"}
LIVE |= {"idle", "starting", "nodes", "cores", "load", "memory_bytes", "memory_used_bytes"}  # of reports
RULES = """
rules:
  - {name: adding, on: {type: scan.done}, match: {data.n: {gt: 1}},
     run: {function: work.py:add, endpoint: local, args: {a: "${data.n}"}}}
  - {name: off, on: {type: scan.done}, run: {function: work.py:add, endpoint: local, args: {a: 1}}}
  - {name: unfillable, on: {type: scan.done}, match: {data.n: 3},
     run: {function: work.py:add, endpoint: local, args: {a: "${data.missing}"}}}
"""


def fill(system: System) -> None:
    """Create tasks with every outcome, events, dead letters and rule versions.

    Also a revoked token and a revoked endpoint.
    """
    system.write("work.py", "def add(a, b=1):\n    print('adding')\n    return a + b\n")
    system.write("all.yaml", RULES)
    system.oncue("deploy", "all.yaml", "--yes")
    system.oncue("rules", "disable", "off", "--why", "not now")
    for n in (1, 2, 3, 2):
        system.http("POST", "/v1/events", {"type": "scan.done", "source": "/2bm", "id": f"e{n}", "data": {"n": n}})
    system.write("all.yaml", RULES.replace("gt: 1", "gt: 7"))
    system.oncue("deploy", "all.yaml", "--yes", "--note", "second")
    system.await_tasks(2, rule="adding")
    with system.client() as client:
        client.gather(client.map(lambda x: x * 2, range(600)), timeout=PATIENCE_S)
        policy = Retry(max=1, backoff="constant", base=0.01)
        with pytest.raises(ZeroDivisionError):
            client.with_options(retry=policy).submit(lambda: 1 // 0).result(PATIENCE_S)
        client.submit(lambda b: b, b"x" * 1_000_000).result(PATIENCE_S)
        client.submit(lambda: {1, 2}).result(PATIENCE_S)
        ended = client.submit(abs, -1)
        ended.result(PATIENCE_S)
        ended.retry().result(PATIENCE_S)
    system.http("POST", "/v1/endpoints", {"name": "other", "public_key": "y" * 40})
    with system.client() as client:  # the lists are in the order of time, not of the topics
        for n in range(5):
            there = client.submit(abs, n, endpoint="other")
            assert client.submit(abs, n).result(PATIENCE_S) == n
            there.cancel()
    system.http("POST", "/v1/endpoints", {"name": "gone", "public_key": "x" * 40})
    system.http("DELETE", "/v1/endpoints/gone")
    made = system.http("POST", "/v1/tokens", {"name": "gone"}).json
    system.http("DELETE", f"/v1/tokens/{made['id']}")


def pages(system: System, path: str) -> Any:
    """Return all items of a list."""
    items: list[Any] = []
    cursor = ""
    while True:
        answer = system.http("GET", path + f"?limit=100&cursor={cursor}" if path in LISTS[:4] else path)
        assert answer.status == 200, answer
        if not isinstance(answer.json, dict):
            return answer.json
        items += answer.json["items"]
        cursor = answer.json["next"] or ""
        if not cursor:
            return items


def stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in LIVE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def answers(system: System) -> dict[str, Any]:
    found = {path: pages(system, path) for path in LISTS}
    # The local token is made anew by each start, and the one before is revoked.
    found["/v1/tokens"] = [t for t in found["/v1/tokens"] if t["name"] == "gone"]
    if "ONCUE_LOG" in system.env:  # Kafka's topics are read beside one another: near neighbours may change places
        found["/v1/tasks"].sort(key=lambda t: t["id"])
    tasks = found["/v1/tasks"]
    closers = [t["id"] for t in tasks if t["name"] != "<lambda>" or t["state"] != "succeeded"] + [tasks[0]["id"]]
    for task in closers:
        found[task] = [
            system.http("GET", f"/v1/tasks/{task}{part}").body.decode() for part in ("", "/timeline", "/logs")
        ]
    for path in ("/v1/rules", "/v1/endpoints"):
        found[path] = stable(system.http("GET", path).json)
        found[path + " states"] = [(x["name"], x["state"]) for x in system.http("GET", path).json]
        for item in found[path]:
            if item.get("enabled", True):
                item["why"] = ""  # of the newest dead letter since the start; which agent is connected
    for event in found["/v1/events"]:
        found[f"event {event['offset']}"] = system.http("GET", f"/v1/events/{event['offset']}").json
    found["rule tasks"] = system.tasks(rule="adding")
    found["failed tasks"] = system.tasks(state="failed")
    return found


def compared(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name in before:
        assert json.dumps(before[name], indent=1) == json.dumps(after[name], indent=1), name


@pytest.mark.parametrize("end", ["down", "kill"])
def test_the_same_answers_without_the_old_view(stopped: System, end: str) -> None:
    system = stopped
    system.up("--workers", "1")
    fill(system)
    system.await_true(lambda: not system.tasks(state="open"), "all tasks have ended")
    system.await_connected()
    before = answers(system)
    assert len(before["/v1/tasks"]) > 600
    assert before["/v1/dead"]
    assert before["failed tasks"]
    if end == "down":
        system.down()
    else:
        os.kill(system.server.pid, signal.SIGKILL)
    views = list(system.data.glob("view.db*"))
    assert views
    for path in views:
        path.unlink()
    system.up("--workers", "1")
    system.await_connected()
    compared(before, answers(system))
    with system.client() as client:
        assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4
