"""Rules that limit how much runs at once, through kills and new versions of the rule."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.e2e.running import System

FUNCTION = """
import os, time

def work(gate, k, n):
    while not os.path.exists(gate):
        time.sleep(0.01)
    return n

def fail(gate, k, n):
    raise ValueError(n)
"""
RULES = """
rules:
  - name: {name}
    on: {{type: scan.{name}}}
    retry: {{max: 5, base: 10ms, on: [lost]}}
    {limits}
    run: {{function: work.py:{function}, args: {{gate: {gate}, k: "${{data.k}}", n: "${{data.n}}"}}}}
"""
TWO = 'limit: {running: 2, key: "${data.k}"}'


def deploy(system: System, name: str, limits: str, function: str = "work") -> None:
    system.write("work.py", FUNCTION)
    gate = system.folder / f"{name}.gate"
    system.write(f"{name}.yaml", RULES.format(name=name, limits=limits, gate=gate, function=function))
    system.oncue("deploy", f"{name}.yaml", "--yes")


def open_gate(system: System, name: str) -> None:
    system.write(f"{name}.gate", "")


def emit(system: System, name: str, k: str, *numbers: int) -> None:
    for n in numbers:
        body = {"source": "/s", "type": f"scan.{name}", "id": f"{k}{n}", "data": {"k": k, "n": n}}
        answer = system.http("POST", "/v1/events", body)
        assert answer.status == 202, answer


def rule(system: System, name: str) -> Any:
    return system.json("rules", "show", name)


def await_waiting(system: System, name: str, count: int) -> None:
    system.await_true(lambda: rule(system, name)["waiting"] == count, f"{count} events wait")


def keys_open(system: System, name: str) -> Counter[str]:
    found = [t for t in system.tasks(rule=name) if t["state"] not in ("succeeded", "failed")]
    return Counter(system.http("GET", f"/v1/tasks/{t['id']}").json["args"]["k"] for t in found)


def values(system: System, name: str, count: int) -> list[Any]:
    found = system.await_tasks(count, rule=name)
    return [system.http("GET", f"/v1/tasks/{t['id']}").json["value"] for t in found]


def test_no_more_than_the_limit_run_and_none_is_lost_by_a_kill(stopped: System) -> None:
    stopped.up("--workers", "4")
    deploy(stopped, "held", TWO)
    emit(stopped, "held", "a", 1, 2, 3, 4, 5)
    emit(stopped, "held", "b", 6, 7, 8)
    await_waiting(stopped, "held", 4)
    assert len(stopped.tasks(rule="held")) == 4
    (why, _) = rule(stopped, "held")["waits"]
    assert why.startswith("3 wait: 2 of at most 2 run by ${data.k} = a: tasks ")
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "4")
    emit(stopped, "held", "a", 9)
    await_waiting(stopped, "held", 5)
    assert len(stopped.tasks(rule="held")) == 4
    open_gate(stopped, "held")
    assert sorted(values(stopped, "held", 9)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    await_waiting(stopped, "held", 0)


def test_a_firing_that_makes_no_task_frees_its_place(shared: System) -> None:
    deploy(shared, "broken", "limit: {running: 1}")
    text = (shared.folder / "broken.yaml").read_text()
    shared.write("broken.yaml", text.replace('n: "${data.n}"', 'n: "${data.n + 1}"'))
    shared.oncue("deploy", "broken.yaml", "--yes")
    open_gate(shared, "broken")

    for n in ("x", 1, "y", 2):
        body = {"source": "/s", "type": "scan.broken", "data": {"k": "a", "n": n}}
        assert shared.http("POST", "/v1/events", body).status == 202

    assert sorted(values(shared, "broken", 2)) == [2, 3]


def test_failed_and_cancelled_tasks_free_their_places(shared: System) -> None:
    deploy(shared, "ends", "limit: {running: 1}")
    emit(shared, "ends", "a", 1, 2)
    await_waiting(shared, "ends", 1)

    shared.oncue("tasks", "cancel", "--rule", "ends", "--yes")

    shared.await_true(lambda: len(shared.tasks(rule="ends")) == 2, "the second runs")
    open_gate(shared, "ends")
    deploy(shared, "ends", "limit: {running: 1}", "fail")
    emit(shared, "ends", "a", 3, 4, 5)
    states = Counter(t["state"] for t in shared.await_tasks(5, rule="ends"))
    assert states == {"cancelled": 1, "succeeded": 1, "failed": 3}


def test_a_new_limit_holds_for_those_that_wait(shared: System) -> None:
    deploy(shared, "more", "limit: {running: 1}")
    emit(shared, "more", "a", 1, 2, 3, 4)
    await_waiting(shared, "more", 3)

    deploy(shared, "more", "limit: {running: 3}")

    await_waiting(shared, "more", 1)
    assert len(shared.tasks(rule="more")) == 3
    deploy(shared, "more", "")  # without a limit all run
    await_waiting(shared, "more", 0)
    open_gate(shared, "more")
    assert sorted(values(shared, "more", 4)) == [1, 2, 3, 4]


def test_explain_names_what_an_event_would_wait_for(shared: System) -> None:
    deploy(shared, "why", TWO)
    emit(shared, "why", "a", 1, 2, 3)
    await_waiting(shared, "why", 1)
    event = {"specversion": "1.0", "id": "new", "source": "/s", "type": "scan.why", "data": {"k": "a", "n": 9}}
    shared.write("event.json", json.dumps(event))

    found = shared.json("rules", "explain", "why", "event.json")

    assert found["fires"]
    assert found["why"].startswith("it waits: 2 of at most 2 run by ${data.k} = a: tasks ")
    assert all(task["id"] in found["why"] for task in shared.tasks(rule="why"))
    shared.write("event.json", json.dumps(event | {"data": {"k": "b", "n": 9}}))
    steps = shared.json("rules", "explain", "why", "event.json")["steps"]
    assert steps[-1]["found"] == "none runs by ${data.k} = b"
    open_gate(shared, "why")
    values(shared, "why", 3)


def test_a_paused_rule_keeps_what_fires_and_runs_it_as_it_is_later(stopped: System) -> None:
    stopped.up("--workers", "2")
    deploy(stopped, "paused", "mode: paused")
    open_gate(stopped, "paused")
    emit(stopped, "paused", "a", 1, 2)
    await_waiting(stopped, "paused", 2)
    shown = rule(stopped, "paused")
    assert (shown["state"], shown["waits"]) == ("paused", ["2 wait: the rule has `mode: paused`"])
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "2")
    emit(stopped, "paused", "a", 3)
    await_waiting(stopped, "paused", 3)

    text = (stopped.folder / "paused.yaml").read_text().replace("mode: paused", "")
    stopped.write("paused.yaml", text.replace('n: "${data.n}"', 'n: "n = ${data.n}"'))
    stopped.oncue("deploy", "paused.yaml", "--yes")

    assert sorted(values(stopped, "paused", 3)) == ["n = 1", "n = 2", "n = 3"]


def test_a_rule_in_shadow_is_counted_and_runs_nothing(shared: System) -> None:
    deploy(shared, "shadowed", "mode: shadow")
    deploy(shared, "shadowed-one", "mode: shadow\n    limit: {running: 1}")

    for name in ("shadowed", "shadowed-one"):
        emit(shared, name, "a", 1, 2, 3)

    for name in ("shadowed", "shadowed-one"):
        shared.await_true(lambda n=name: rule(shared, n)["shadow"] == 3, "it is counted")  # type: ignore[misc]
        assert rule(shared, name)["state"] == "shadow"
        assert shared.tasks(rule=name) == []


def test_a_rule_pauses_after_failures_until_it_is_enabled(stopped: System) -> None:
    stopped.up("--workers", "1")
    open_gate(stopped, "broken")
    deploy(stopped, "broken", "pause_on_failures: 2", "fail")
    emit(stopped, "broken", "a", 1, 2)
    failed = {t["id"] for t in stopped.await_tasks(2, rule="broken")}
    emit(stopped, "broken", "a", 3, 4)
    await_waiting(stopped, "broken", 2)
    for process in reversed(stopped.note()):
        process.kill()
    stopped.up("--workers", "1")
    await_waiting(stopped, "broken", 2)
    (why,) = rule(stopped, "broken")["waits"]
    assert why.startswith("2 wait: 2 tasks have failed in a row, the last is ")
    assert any(task in why for task in failed)

    stopped.oncue("rules", "enable", "broken")
    stopped.await_tasks(4, rule="broken")
    emit(stopped, "broken", "a", 5)
    await_waiting(stopped, "broken", 1)

    deploy(stopped, "broken", "pause_on_failures: 2")  # its function works now
    assert values(stopped, "broken", 5).count(5) == 1
