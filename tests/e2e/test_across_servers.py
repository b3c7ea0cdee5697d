"""Requests that only an endpoint's owner can answer, sent to another server."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.dispatcher.cluster.peers import FORWARDED
from tests.e2e.many import Many, many_servers
from tests.e2e.running import System

ALONE = {FORWARDED: "1"}  # the server answers from its own view
NAMES = ("e1", "e2", "e3")  # of three endpoints, one of two servers owns at least two


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        for name in NAMES:
            found.endpoint(name, found.servers[1])
        yield found


def is_owner(server: System, endpoint: str) -> bool:
    why = server.http("GET", f"/v1/endpoints/{endpoint}", headers=ALONE).json["why"]
    return not why.startswith(("the server http", "no server acts"))


def owner_and_peer(two: Many) -> tuple[System, System, list[str]]:
    """Return the owner of most endpoints, the other server, and those endpoints."""
    two.servers[0].await_true(
        lambda: all([is_owner(s, n) for s in two.servers].count(True) == 1 for n in NAMES),
        "each endpoint has one owner",
    )
    a, b = two.servers
    owner = a if sum(is_owner(a, n) for n in NAMES) >= 2 else b
    return owner, b if owner is a else a, [n for n in NAMES if is_owner(owner, n)]


def forwarded_count(server: System, route: str) -> float:
    """Return the number of requests forwarded so far."""
    return server.metric(f'oncue_http_requests_total{{route="{route}",', may_be_absent=True)


def show(server: System, task: str, **headers: str) -> dict[str, object]:
    return dict(server.http("GET", f"/v1/tasks/{task}", headers=headers).json)


def test_a_waiting_task_is_cancelled_through_another_server(two: Many) -> None:
    owner, other, names = owner_and_peer(two)
    first, second = names[:2]
    route = "POST /v1/tasks/cancel"
    with other.client() as client:
        tasks = {name: client.map(nap, [600.0] * 40, endpoint=name) for name in (first, second)}
        client.flush()
        submitted = [t.id for name in (first, second) for t in tasks[name]]
        for name in (first, second):  # until the agents' queues are full and the rest waits
            owner.await_true(
                lambda name=name: any(show(owner, t.id)["why"] == "it runs" for t in tasks[name]), f"{name} is busy"
            )
        last = [tasks[name][-1].id for name in (first, second)]
        # The answer to a question is the owner's.
        for task in last:
            assert "no free worker" in str(show(other, task)["why"])
            assert "acts for" in str(show(other, task, **ALONE)["why"])
        sent = [t for t in submitted if show(owner, t)["sent"]]
        assert sent
        assert [t for t in submitted if show(other, t)["sent"]] == sent
        at = other.http("GET", f"/v1/endpoints/{first}").json
        assert (at["state"], at["queued"]) == ("connected", sum(t in sent for t in [t.id for t in tasks[first]]))
        # The other server's view does not have it; and a forwarded request is not forwarded again.
        before = forwarded_count(owner, route)
        alone = other.http("POST", "/v1/tasks/cancel", {"tasks": submitted, "waiting": True}, headers=ALONE)
        assert (alone.status, alone.json["tasks"], forwarded_count(owner, route)) == (202, [], before)
        # For two endpoints of one server, that is asked once.
        answer = other.http("POST", "/v1/tasks/cancel", {"tasks": submitted, "waiting": True})
        assert answer.status == 202
        assert sorted(answer.json["tasks"]) == sorted(set(submitted) - set(sent))
        assert forwarded_count(owner, route) == before + 1
        other.await_true(
            lambda: all(show(other, t)["state"] == "cancelled" for t in answer.json["tasks"]), "they are cancelled"
        )
        assert {show(other, t)["state"] for t in sent} <= {"waiting", "running"}
        other.http("POST", "/v1/tasks/cancel", {"tasks": sent})
    two.agree(80)


def test_waiting_futures_are_cancelled_through_any_server(two: Many) -> None:
    owner, other, names = owner_and_peer(two)
    with other.client() as client:
        executor = client.executor(names[0])
        futures = [executor.submit(nap, 600.0) for _ in range(40)]
        try:
            owner.await_true(lambda: futures[0].running(), "the first runs")
            assert not futures[0].cancel()
            assert futures[-1].cancel()
            executor.shutdown(wait=False, cancel_futures=True)
            assert 0 < sum(f.cancelled() for f in futures) < 40
        finally:
            running = [f.task.id for f in futures if not f.cancelled()]
            other.http("POST", "/v1/tasks/cancel", {"tasks": running})
    two.agree(40)


def test_without_the_owner_another_server_answers_from_its_view(two: Many) -> None:
    owner, other, names = owner_and_peer(two)
    with other.client() as client:
        task = client.submit(nap, 600.0, endpoint=names[0])
        client.flush()
        owner.await_true(lambda: show(owner, task.id)["state"] == "running", "it runs")
        waits = client.submit(nap, 600.0, endpoint=names[0])
        client.flush()
        owner.server.kill()
        answer = other.http("POST", "/v1/tasks/cancel", {"tasks": [waits.id], "waiting": True})
        assert (answer.status, answer.json["tasks"]) == (202, [])
        assert show(other, waits.id)["state"] == "waiting"
        other.http("POST", "/v1/tasks/cancel", {"tasks": [task.id, waits.id]})
    owner.up("--no-endpoint")
    two.agree(2)


def test_agents_accept_the_new_key_of_a_server_that_lost_its_key(two: Many) -> None:
    """Agents that stay connected to another server learn the new key, too.

    When that other server is gone, they connect to the first with its new key.
    """
    a, b = two.servers
    agents = [two.agent(name) for name in NAMES]
    a.server.kill()
    shutil.rmtree(a.data)
    a.up("--no-endpoint")
    true = sorted([s.local["bridge"], s.local["server_key"]] for s in two.servers)

    def known(name: str) -> bool:
        told = json.loads((b.data / "endpoints" / name / "servers.json").read_text())
        return sorted([s["bridge"], s["key"]] for s in told) == true

    for name in NAMES:
        a.await_true(lambda name=name: known(name), f"the agent of {name} has both servers")
    assert all(agent.is_running() for agent in agents)
    b.server.kill()
    with a.client() as client:
        for name in NAMES:
            assert client.submit(nap, 0.0, endpoint=name).result(60) == 0.0
    b.up("--no-endpoint")
    two.agree(3)
