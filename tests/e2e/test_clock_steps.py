"""The system clock of a server or an agent is stepped, while tasks, rules, files and tokens are used."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import System
from tests.e2e.system_clock import SystemClock, needs_faketime

pytestmark = [needs_faketime, pytest.mark.timeout(300)]
HOUR, YEAR = 3_600, 365 * 86_400
STEPS = [1, -1, HOUR, -HOUR, YEAR, -YEAR]
WORK = """
import os, time

def flaky(path, until):
    with open(path, "a") as f:
        f.write("x")
    count = os.path.getsize(path)
    if count < until:
        raise RuntimeError(f"call {count}")
    return count

def hold(path, seconds):
    with open(path, "a") as f:
        f.write("x")
    time.sleep(seconds)
    return "held"

def note(path):
    return path

def collect(ns):
    return ns
"""
RULES = """
triggers:
  - {name: door, kind: webhook, verify: none, type: org.example.door}
  - {name: raw, kind: file, path: FOLDER, glob: "*.raw"}
rules:
  - name: collected
    on: door
    match: {data.kind: batch}
    batch: {key: "${data.series}", wait: 5s}
    run: {function: work.py:collect, endpoint: node, args: {ns: "${each.data.n}"}}
  - name: once
    on: door
    match: {data.kind: once}
    dedupe: {key: "${data.n}", ttl: 2h}
    run: {function: work.py:collect, endpoint: node, args: {ns: "${data.n}"}}
  - name: noted
    on: raw
    run: {function: work.py:note, endpoint: node, args: {path: "${data.path}"}}
"""


class Site:
    """A server and an agent, each with a system clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.clocks = {"server": SystemClock(folder, "server"), "agent": SystemClock(folder, "agent")}
        self.system = System(folder, **self.clocks["server"].environment())
        self.raw = folder / "raw"
        self.raw.mkdir()

    def up(self) -> None:
        self.system.up("--no-endpoint")

    def start_agent(self) -> None:
        self.system.oncue("endpoint", "start", "node", "--detach", env=self.clocks["agent"].environment())
        self.system.await_connected("node")

    def deploy(self) -> None:
        self.system.write("work.py", WORK)
        self.system.write("clock.yaml", RULES.replace("FOLDER", str(self.raw)))
        for name in ("flaky", "hold"):
            self.system.oncue("functions", "register", f"work.py:{name}")
        self.system.oncue("deploy", "clock.yaml", "--yes")

    def submit(self, function: str, **request: Any) -> str:
        body = {"function": function, "endpoint": "node"} | request
        answer = self.system.http("POST", "/v1/tasks", body)
        assert answer.status in (200, 202), answer
        return str(answer.json["id"])

    def knock(self, **data: Any) -> None:
        assert self.system.http("POST", "/hooks/door", data, token=None).status == 202

    def ended(self, task: str, seconds: float = 45.0) -> dict[str, Any]:
        def closed() -> Any:
            found = self.system.http("GET", f"/v1/tasks/{task}").json
            return found if found["state"] not in ("waiting", "running", "retrying", "cancelling") else None

        return dict(self.system.await_true(closed, f"{task} has ended", seconds))

    def values(self, rule: str) -> list[Any]:
        return values(self.system, rule)


def values(system: System, rule: str) -> list[Any]:
    """Return the values of a rule's tasks that have succeeded."""
    tasks = system.tasks(rule=rule, state="succeeded")
    return [system.http("GET", f"/v1/tasks/{t['id']}").json["value"] for t in tasks]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site(tmp_path_factory.mktemp("clock"))
    try:
        found.up()
        found.system.oncue("endpoint", "register", "node", "--workers", "2")
        found.start_agent()
        found.deploy()
        yield found
    finally:
        found.system.oncue("endpoint", "stop", "node", code=None)
        found.system.end()


@pytest.mark.parametrize("step_s", STEPS)
@pytest.mark.parametrize("who", ["server", "agent"])
def test_a_step_of_a_clock_changes_nothing_that_is_under_way(site: Site, who: str, step_s: int) -> None:
    system, at = site.system, f"{who}{step_s}"
    token = system.http("POST", "/v1/tokens", {"name": at, "scopes": ["user"], "expires_s": 1_800}).json["token"]
    before_raw = site.raw / f"{at}-before.raw"
    before_raw.write_text("x")
    site.knock(kind="once", n=f"{at}-first")
    system.await_true(lambda: f"{at}-first" in site.values("once"), "the first event has passed dedupe")
    system.await_true(lambda: str(before_raw) in site.values("noted"), "the first file has fired")
    said = len(agent_said(site))
    held = [
        site.submit("hold", args=[str(system.folder / f"{at}-{i}"), 1.5], timeout_ms=20_000, expires_ms=60_000)
        for i in range(3)  # of two workers: the third waits
    ]
    retry = {"max": 1, "backoff": "constant", "base_ms": 2_000, "on": ["error"]}
    flaky = site.submit("flaky", args=[str(system.folder / f"{at}-flaky"), 2], retry=retry, expires_ms=60_000)
    site.knock(kind="batch", series=at, n=1)

    site.clocks[who].step(step_s)
    begun = time.monotonic()

    site.knock(kind="batch", series=at, n=2)
    site.knock(kind="once", n=f"{at}-first")
    after_raw = site.raw / f"{at}-after.raw"
    after_raw.write_text("x")
    late = site.submit("flaky", args=[str(system.folder / f"{at}-late"), 1], expires_ms=60_000)
    for task in (*held, flaky, late):
        found = site.ended(task)
        assert found["state"] == "succeeded", found
    assert time.monotonic() - begun < 45
    assert [(system.folder / f"{at}-{i}").read_text() for i in range(3)] == ["x"] * 3  # none ran twice
    system.await_true(lambda: [1, 2] in site.values("collected"), "the window has closed, with both events")
    system.await_true(lambda: str(after_raw) in site.values("noted"), "the second file has fired")
    noted, once = site.values("noted"), site.values("once")
    assert (noted.count(str(before_raw)), noted.count(str(after_raw))) == (1, 1)
    assert once.count(f"{at}-first") == 1
    assert system.http("GET", "/v1/tasks", token=token).status == 200
    assert "not connected" not in agent_said(site)[said:]
    if who == "server":
        system.await_true(lambda: "the system clock was stepped by" in system.said(), "the step is told")


def agent_said(site: Site) -> str:
    return (site.system.data / "endpoints" / "node" / "agent.log").read_text()


@pytest.mark.parametrize("step_s", [HOUR, -HOUR, YEAR, -YEAR])
def test_an_agent_with_a_wrong_clock_registers_and_works(site: Site, step_s: int) -> None:
    """The server knows a session of an agent whose clock was ahead."""
    site.system.oncue("endpoint", "stop", "node")
    site.clocks["agent"].step(step_s)

    site.start_agent()

    task = site.submit("flaky", args=[str(site.system.folder / f"wrong{step_s}"), 1], expires_ms=30_000)
    found = site.ended(task)
    assert found["state"] == "succeeded", found
    accepted, ended = found["accepted_us"], found["ended_us"]
    assert accepted - 10_000_000 < ended < accepted + 30_000_000  # by the server's clock
    retry = {"max": 1, "backoff": "constant", "base_ms": 100, "on": ["error"]}
    again = site.submit("flaky", args=[str(site.system.folder / f"again{step_s}"), 2], retry=retry)
    assert site.ended(again, 20)["state"] == "succeeded"


@pytest.mark.parametrize("step_s", [YEAR, -YEAR, -HOUR])
def test_a_server_that_starts_with_a_wrong_clock_loses_and_repeats_nothing(site: Site, step_s: int) -> None:
    system, at = site.system, f"start{step_s}"
    token = system.http("POST", "/v1/tokens", {"name": at, "scopes": ["user"]}).json["token"]
    retry = {"max": 1, "backoff": "constant", "base_ms": 4_000, "on": ["error"]}
    path = system.folder / f"{at}-flaky"
    task = site.submit("flaky", args=[str(path), 2], retry=retry, key=at)
    system.await_true(path.exists, "the first attempt has run")
    system.await_true(lambda: len(system.http("GET", f"/v1/tasks/{task}").json["attempts"]) == 1, "it has ended")
    count = len(system.tasks())
    system.server.kill()
    site.clocks["server"].step(step_s)

    site.up()
    system.await_connected("node")

    assert site.submit("flaky", args=[str(path), 2], retry=retry, key=at) == task
    assert site.ended(task, 30)["state"] == "succeeded"
    assert path.read_text() == "xx"
    assert system.http("GET", "/v1/tasks", token=token).status == 200
    assert len(system.tasks()) == count  # nothing was deleted
    # Put right, without a wait.
    system.server.kill()
    site.clocks["server"].set(0)
    site.up()
    system.await_connected("node")
    after = site.submit("flaky", args=[str(system.folder / f"{at}-after"), 1], expires_ms=30_000)
    assert site.ended(after)["state"] == "succeeded"
    assert len(system.tasks()) == count + 1
    assert json.loads((system.data / "clock.json").read_text())["withheld_us"] == 0
