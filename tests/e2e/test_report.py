"""Reports: arrived = done + failed + waiting + passed over + missing, whatever has happened."""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
import time
from collections import Counter
from typing import Any

import psutil
import pytest

from tests.e2e.running import System

FUNCTIONS = """
import os

def work(n):
    if n % 5 == 4:
        raise ValueError(f"bad {n}")
    return n

def many(numbers):
    return len(numbers)

def after(n):
    return n
"""
RULES = """
triggers:
  - {name: door, kind: webhook, verify: none, type: org.example.door}
rules:
  - name: work
    on: door
    match: {data.kind: work}
    run: {function: acc.py:work, args: {n: "${data.n}"}}
  - name: after
    on: {done: work, state: ok}
    run: {function: acc.py:after, args: {n: "${data.value}"}}
  - name: three
    on: door
    match: {data.kind: batch}
    batch: {count: 3}
    run: {function: acc.py:many, args: {numbers: "${each.data.n}"}}
  - name: once
    on: door
    match: {data.kind: once}
    dedupe: {key: "${data.key}", ttl: 1h}
    run: {function: acc.py:after, args: {n: "${data.n}"}}
  - name: broken
    on: door
    match: {data.kind: broken}
    run: {function: acc.py:after, args: {n: "${data.missing}"}}
  - name: off
    on: door
    enabled: false
    match: {data.kind: off}
    run: {function: acc.py:after, args: {n: "${data.n}"}}
"""
KINDS = ("work", "batch", "once", "broken", "off", "other")


def deploy(system: System, text: str = RULES) -> None:
    system.write("acc.py", FUNCTIONS)
    system.write("acc.yaml", text)
    system.oncue("deploy", "acc.yaml", "--yes")


def send(system: System, events: list[tuple[int, str]]) -> None:
    for n, kind in events:
        data = {"n": n, "kind": kind, "key": n % 2, "sample": f"s{n % 2}"}
        answer = system.http("POST", "/hooks/door", data, {"webhook-id": f"e{n}"}, token=None)
        assert answer.status == 202, answer


def expected(events: list[tuple[int, str]]) -> Counter[str]:
    """Return the states of a history in which everything that can run has run."""
    found: Counter[str] = Counter()
    batches = sum(kind == "batch" for _, kind in events)
    seen: set[int] = set()
    for n, kind in events:
        if kind == "work":
            found["failed" if n % 5 == 4 else "done"] += 1
        elif kind == "broken":
            found["failed"] += 1
        elif kind == "once":
            found["passed_over" if n % 2 in seen else "done"] += 1
            seen.add(n % 2)
        elif kind in ("off", "other"):
            found["passed_over"] += 1
    found["done"] += batches - batches % 3
    found["waiting"] += batches % 3
    return found


def report(system: System, *words: str, code: int = 0) -> dict[str, Any]:
    done = system.oncue("report", "--since", "1h", "--json", *words, code=None)
    found = dict(json.loads(done.stdout))
    assert done.returncode == code, found["reasons"]
    return found


def until_counts(system: System, wanted: Counter[str]) -> dict[str, Any]:
    """Return the report once it has these counts; the last one after a minute."""
    end = time.monotonic() + 60
    while True:
        found = report(system)
        if Counter({k: v for k, v in found["counts"].items() if v}) == +wanted or time.monotonic() > end:
            return found
        assert found["counts"]["missing"] == 0, found


def test_the_sums_match_the_log_over_random_histories_with_kills(stopped: System) -> None:
    chance = random.Random()
    events = [(n, chance.choice(KINDS)) for n in range(48)] + [(100, "work")]
    cut = chance.randrange(1, 48)
    stopped.up("--workers", "1")
    deploy(stopped)
    send(stopped, events[:cut])
    server = stopped.server
    server.kill()
    psutil.wait_procs([server])
    stopped.up("--workers", "1")
    send(stopped, events[cut:])

    found = until_counts(stopped, expected(events))

    assert Counter({k: v for k, v in found["counts"].items() if v}) == +expected(events), (
        found["reasons"],
        cut,
        events,
    )
    assert found["arrived"] == len(events) == len(found["events"])
    assert found["accounted"] is True
    by_id = {item["id"]: item for item in found["events"]}
    for n, kind in events:
        item = by_id[f"e{n}"]
        if kind == "off":
            assert item["reasons"][0]["condition"] == "enabled: false"
        if kind == "other":
            assert {r["rule"] for r in item["reasons"]} == {"work", "three", "once", "broken", "off"}
        if kind == "broken":
            assert item["reasons"][0]["letter"] >= 0
        if kind == "work" and n % 5 == 4:
            assert f"bad {n}" in item["reasons"][0]["why"]
        if kind == "work" and n % 5 != 4:
            assert {r["rule"] for r in item["reasons"]} == {"work", "after"}
            assert item["stages"] is not None

    one_is_lost = 100
    stopped.down()
    with sqlite3.connect(stopped.data / "view.db") as view:  # as if its task had never been made
        view.execute("DELETE FROM task WHERE event_id = ?", (f"e{one_is_lost}",))
    view.close()
    stopped.up("--workers", "1")
    lost = report(stopped, code=1)
    assert lost["counts"]["missing"] == 1
    assert lost["accounted"] is False
    assert [item["id"] for item in lost["events"] if item["state"] == "missing"] == [f"e{one_is_lost}"]
    assert "neither a task nor a dead letter" in stopped.oncue("report", "--list", "missing", code=1).stdout


@pytest.mark.embedded
def test_reports_by_rule_group_and_format(stopped: System) -> None:
    stopped.up("--workers", "1")
    deploy(stopped)
    events = [(0, "work"), (1, "work"), (4, "work"), (7, "other"), (8, "off")]
    send(stopped, events)
    until_counts(stopped, expected(events))

    by_rule = report(stopped, "--rule", "work", "--group", "data.sample")
    assert by_rule["arrived"] == 5
    assert by_rule["counts"] == {"missing": 0, "waiting": 0, "failed": 1, "done": 2, "passed_over": 2}
    assert by_rule["groups"]["s0"]["failed"] == 1
    assert {t["stage"] for t in by_rule["latency"]} == {"trigger", "match", "wait", "run", "total"}
    assert report(stopped, "--trigger", "nobody")["arrived"] == 0
    rows = list(csv.DictReader(io.StringIO(stopped.oncue("report", "--csv").stdout)))
    assert Counter(row["state"] for row in rows) == {"done": 2, "failed": 1, "passed over": 2}
    page = stopped.oncue("report", "--html").stdout
    assert "arrived 5 = done 2 + failed 1 + waiting 0 + passed over 2 + missing 0" in page
    assert "arrived 5 = done 2" in stopped.oncue("report").stdout
    assert "bad 4" in stopped.oncue("report", "--list", "failed").stdout
    covered = stopped.json("rules", "coverage")
    taken = {rule["rule"]: rule["events"] for rule in covered["rules"]}
    assert taken == {"work": 3, "after": 2, "three": 0, "once": 0, "broken": 0, "off": 0}
    (untaken,) = covered["untaken"]
    assert (untaken["type"], untaken["events"], untaken["of"]) == ("org.example.door", 2, 5)
    assert "data.kind = 'batch'" in stopped.oncue("rules", "coverage").stdout
    changed = RULES.replace('n: "${data.n}"}}\n  - name: after', 'n: "${data.key}"}}\n  - name: after')
    stopped.write("new.yaml", changed.replace("{data.kind: off}", "{data.kind: other}").replace("enabled: false", ""))
    found = stopped.json("rules", "simulate", "new.yaml", "--label", "acc")
    assert {r["rule"]: (r["before"], r["after"], r["differing"]) for r in found["rules"] if r["differing"]} == {
        "work": (3, 3, 1),  # the key of 0 and 1 is the number
        "off": (0, 1, 1),
    }
    (other_args,) = [d for d in found["differences"] if d["rule"] == "work"]
    assert (other_args["args_before"], other_args["args_after"]) == ('{"n":4}', '{"n":0}')
    assert found["left_out"] == ["after"]
    assert "+1" in stopped.oncue("rules", "simulate", "new.yaml", "--label", "acc").stdout
    stopped.write("wrong.yaml", "rules: [{name: r}]")
    stopped.oncue("rules", "simulate", "wrong.yaml", code=2)
    assert len(stopped.tasks()) == 5
    stopped.oncue("report", "--rule", "nobody", code=4)
    stopped.oncue("report", "--group", "data..", code=2)
    stopped.oncue("report", "--day", "yesterday", "--since", "1h", code=2)


@pytest.mark.embedded
def test_a_replay_makes_tasks_of_its_own_once_also_over_a_kill(stopped: System) -> None:
    stopped.up("--workers", "1")
    deploy(stopped)
    send(stopped, [(n, "work") for n in range(12)])
    stopped.await_tasks(12, rule="work")
    first = {task["id"] for task in stopped.tasks(rule="work")}
    words = ("replay", "--rule", "work", "--since", "1h")

    counted = stopped.json(*words, "--state", "failed", "--dry-run")
    assert counted["rules"]["work"]["chosen"] == 2
    assert len(stopped.tasks(rule="work")) == 12
    running = stopped.start(*words, "--where", "data.n < 9", "--name", "again", "--yes")
    server = stopped.server
    server.kill()
    psutil.wait_procs([server])
    stopped.up("--workers", "1")
    said, trouble = running.communicate(timeout=120)
    assert running.returncode == 0, said + trouble
    repeated = stopped.json(*words, "--where", "data.n < 9", "--name", "again", "--yes")

    assert repeated["rules"]["work"] == {"events": 12, "chosen": 9, "tasks": 9, "letters": 0, "next": None}
    stopped.await_tasks(21, rule="work")
    again = [task for task in stopped.tasks(rule="work") if task["id"] not in first]
    assert [task["replay"] for task in again] == ["again"] * 9
    assert not stopped.tasks(rule="three")
    assert report(stopped)["arrived"] == 12
    other = stopped.json(*words, "--state", "failed", "--name", "other", "--priority", "low", "--yes")
    assert other["rules"]["work"]["tasks"] == 2
    stopped.await_tasks(23, rule="work")
    lows = [task["replay"] for task in stopped.tasks(rule="work") if task["priority"] == "low"]
    assert lows == ["other"] * 2
    stopped.oncue(*words, "--where", "data.n <", "--yes", code=2)
    stopped.oncue("replay", "--rule", "once", "--yes", code=1)
    stopped.oncue("replay", "--rule", "after", "--yes", code=1)
    stopped.oncue("replay", "--rule", "nobody", "--yes", code=4)
