"""Node-hours of rules, counted and capped, through restarts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import System, system_in

# Half a node for some tenths of a second is more than 0.00001 node-hours (0.036 s of a node).
RULES = """
rules:
  - {name: capped, on: {type: scan.done}, limits: {node_hours: LIMIT},
     run: {function: work.py:burn, args: {n: "${data.n}"}}}
  - {name: free, on: {type: scan.done}, run: {function: work.py:burn, args: {n: "${data.n}"}}}
"""
WORK = """
import time

def burn(n):
    block, until = bytearray(150_000_000), time.process_time() + 0.3
    while time.process_time() < until:
        block[::4096] = bytes(len(block[::4096]))
    return n
"""


def emit(system: System, n: int) -> None:
    event = {"specversion": "1.0", "id": f"scan-{n}", "source": "/2bm", "type": "scan.done", "data": {"n": n}}
    headers = {"Content-Type": "application/cloudevents+json"}
    assert system.http("POST", "/v1/events", json.dumps(event).encode(), headers).status in (200, 202)


def test_a_rule_that_has_used_its_node_hours_starts_no_more_tasks(tmp_path: Path) -> None:
    with system_in(tmp_path, "--workers", "2") as system:
        system.write("work.py", WORK)
        system.write("scans.yaml", RULES.replace("LIMIT", "0.00001/week"))
        system.oncue("deploy", "scans.yaml", "--yes")
        emit(system, 1)
        first = {t["rule"]: t for t in system.await_tasks(2)}
        capped = lambda: "limits.node_hours" in system.json("rules", "show", "capped")["why"]  # noqa: E731
        system.await_true(capped, "the use is counted")
        shown = {name: system.json("rules", "show", name) for name in ("capped", "free")}
        for rule in shown.values():
            assert rule["attempts"] == 1
            assert 0 < rule["node_hours"] < rule["worker_hours"]  # one of two workers is half a node
        assert (shown["capped"]["node_hours_limit"], shown["free"]["node_hours_limit"]) == (0.00001, 0)
        assert "node-hours in 7d" in system.oncue("rules", "show", "capped").stdout
        used = system.json("tasks", "show", first["free"]["id"])["task"]["attempts"][0]
        assert used["cpu_us"] >= 300_000
        if sys.platform == "linux":
            assert used["peak_bytes"] >= 150_000_000
            assert shown["free"]["peak_bytes"] >= 150_000_000
        assert "s of CPU" in system.oncue("tasks", "show", first["free"]["id"]).stdout

        waiting = _await_waiting(system, 2)
        assert "rule 'capped': limits.node_hours" in waiting["why"]
        text = system.http("GET", "/metrics").body.decode()
        found = {
            (s.name, s.labels.get("rule")): s.value for f in text_string_to_metric_families(text) for s in f.samples
        }
        assert (found["oncue_rule_over_limit", "capped"], ("oncue_rule_over_limit", "free") in found) == (1, False)
        assert found["oncue_rule_node_hours", "free"] > 0

        system.server.kill()
        system.await_true(lambda: not system.server.is_running() or system.server.status() == "zombie", "it is dead")
        system.up()
        assert "limits.node_hours" in _await_waiting(system, 3)["why"]
        assert system.json("tasks", "show", waiting["id"])["task"]["attempts"] == []

        system.write("scans.yaml", RULES.replace("LIMIT", "50/week"))
        system.oncue("deploy", "scans.yaml", "--yes")
        done = system.await_tasks(6)
        assert sorted(t["rule"] for t in done) == ["capped"] * 3 + ["free"] * 3
        assert {t["state"] for t in done} == {"succeeded"}


def _await_waiting(system: System, n: int) -> dict[str, str]:
    """Emit an event, and return the task of the capped rule once that of the free one is done."""
    emit(system, n)

    def found() -> dict[str, str] | None:
        tasks = system.json("tasks", "list", "--limit", "50")
        closed = [t for t in tasks if t["rule"] == "free" and t["state"] == "succeeded"]
        waits = [t for t in tasks if t["rule"] == "capped" and t["state"] == "waiting"]
        assert len([t for t in tasks if t["rule"] == "capped" and t["state"] == "succeeded"]) == 1
        if len(closed) < n or len(waits) < n - 1:
            return None
        task = system.json("tasks", "show", waits[0]["id"])["task"]
        return dict(task) if "limits.node_hours" in task["why"] else None

    return system.await_true(found, "the capped rule's task waits, the other's ran") or {}
