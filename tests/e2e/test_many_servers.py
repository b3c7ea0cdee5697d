"""Several servers on one Kafka: one owner an endpoint, the same answers.

Servers are killed, stopped past their session and continued, and added. No task is lost, and each
has one outcome, the same everywhere.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.many import Many, many_servers
from tests.e2e.running import System


def double(x: int) -> int:
    return 2 * x


def slow_double(x: int) -> int:
    time.sleep(0.02)
    return 2 * x


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        yield found


@pytest.fixture
def three(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 3) as found:
        yield found


def seen_by(server: System, task: str) -> None:
    server.await_true(lambda: server.http("GET", f"/v1/tasks/{task}").status == 200, f"task {task} is known")


def test_each_server_accepts_and_answers_for_all_endpoints(two: Many) -> None:
    a, b = two.servers
    two.endpoint("e1", a)
    two.endpoint("e2", b)
    with a.client() as at_a, b.client() as at_b:
        for client in (at_a, at_b):
            for endpoint in ("e1", "e2"):
                assert client.submit(double, 21, endpoint=endpoint).result(60) == 42
                tasks = client.map(double, range(500), endpoint=endpoint)
                assert client.gather(tasks, 60) == [2 * n for n in range(500)]
        # A task accepted by one server can be cancelled through the other, whichever owns the endpoint.
        for one, other in ((at_a, at_b), (at_b, at_a)):
            long, waiting = one.submit(nap, 600.0, endpoint="e1"), one.submit(nap, 600.0, endpoint="e1")
            other_server = a if other is at_a else b
            for task in (waiting, long):
                seen_by(other_server, task.id)
                answer = other_server.http("POST", "/v1/tasks/cancel", {"tasks": [task.id]})
                assert answer.status == 202, answer
            for task in (waiting, long):
                with pytest.raises(Exception, match="cancel"):
                    task.result(60)
    two.agree(4 * 501 + 4)


def test_another_server_takes_over_from_a_killed_one(two: Many) -> None:
    a, b = two.servers
    for name in ("e1", "e2"):
        two.endpoint(name, b)
    with b.client() as client:
        tasks = [t for name in ("e1", "e2") for t in client.map(slow_double, range(300), endpoint=name)]
        assert tasks[0].result(60) == 0
        a.server.kill()
        more = [t for name in ("e1", "e2") for t in client.map(double, range(100), endpoint=name)]
        states: set[str] = set()

        def taken_over() -> bool:
            found = b.http("GET", "/v1/endpoints").json
            states.update(e["state"] for e in found)
            return not any("acts for it" in e["why"] for e in found)

        b.await_true(taken_over, "b owns both endpoints, and their agents are connected")
        assert "never" not in states
        assert client.gather(tasks, 120) == [2 * n for n in range(300)] * 2
        assert client.gather(more, 60) == [2 * n for n in range(100)] * 2
    a.up("--no-endpoint")
    with a.client() as client:
        assert client.submit(double, 1, endpoint="e1").result(60) == 2
    two.agree(801)


def test_a_server_stopped_past_its_session_does_no_harm(two: Many) -> None:
    """A zombie: when it continues, other servers own its endpoints."""
    a, b = two.servers
    for name in ("e1", "e2"):
        two.endpoint(name, b)
    with b.client() as client:
        tasks = [t for name in ("e1", "e2") for t in client.map(slow_double, range(300), endpoint=name)]
        assert tasks[0].result(60) == 0
        process = two.pause(a)
        more = [t for name in ("e1", "e2") for t in client.map(double, range(100), endpoint=name)]
        assert client.gather(tasks, 120) == [2 * n for n in range(300)] * 2
        assert client.gather(more, 60) == [2 * n for n in range(100)] * 2
        os.kill(process.pid, signal.SIGCONT)
        last = [t for name in ("e1", "e2") for t in client.map(double, range(100), endpoint=name)]
        assert client.gather(last, 60) == [2 * n for n in range(100)] * 2
    with a.client() as client:
        assert client.submit(double, 1, endpoint="e1").result(60) == 2
    two.agree(1001)


def test_a_server_is_added_under_load(two: Many) -> None:
    a, b = two.servers
    for name in ("e1", "e2"):
        two.endpoint(name, b)
    with a.client() as client:
        tasks = [t for name in ("e1", "e2") for t in client.map(slow_double, range(300), endpoint=name)]
        c = two.add()
        with c.client() as at_c:
            more = [t for name in ("e1", "e2") for t in at_c.map(double, range(100), endpoint=name)]
            assert at_c.gather(more, 120) == [2 * n for n in range(100)] * 2
        assert client.gather(tasks, 120) == [2 * n for n in range(300)] * 2
    two.agree(800)


@pytest.mark.parametrize("seed", range(2))
def test_servers_killed_stopped_and_added_at_random(three: Many, seed: int) -> None:
    """Clients of all servers submit work on two endpoints meanwhile."""
    rng = random.Random(seed)
    for name in ("e1", "e2"):
        three.endpoint(name, three.servers[0])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in three.servers]
        waves = [
            (n, client.map(slow_double, range(150), endpoint=name))
            for n in range(2)
            for client in clients
            for name in ("e1", "e2")
        ]
        for what in rng.sample(["kill", "stop", "kill", "stop"], 4):
            server = rng.choice(three.servers)
            if what == "kill":
                server.server.kill()
                three.pass_session(rng.choice((0.0, 1.5)))
                server.up("--no-endpoint")
            else:
                process = three.pause(server)
                three.pass_session(rng.choice((0.5, 1.5)))
                os.kill(process.pid, signal.SIGCONT)
        three.add()
        for _, tasks in waves:
            assert clients[0].gather(tasks, 120) == [2 * n for n in range(150)]
    three.agree(12 * 150)


def test_an_agent_whose_link_is_cut_reconnects_to_the_owner(two: Many) -> None:
    a, b = two.servers
    two.endpoint("e1", a)
    with a.client() as client:
        assert client.submit(double, 1, endpoint="e1").result(60) == 2
        agent = two.agent("e1")
        agent.suspend()  # for longer than both sides wait for a word
        tasks = client.map(double, range(100), endpoint="e1")
        two.pass_session(5.0)
        for server in two.servers:
            server.down()
            server.up("--no-endpoint")
        agent.resume()
        with b.client() as other:
            assert other.submit(double, 4, endpoint="e1").result(90) == 8
        assert client.gather(tasks, 90) == [2 * n for n in range(100)]
    two.agree(102)


def note(path: str, n: int) -> int:
    with open(path, "a") as f:
        f.write(f"{n}\n")
    return n


def test_a_request_that_is_repeated_at_another_server_runs_once(two: Many) -> None:
    """A client that lost its server does not know if the batch was accepted."""
    a = two.servers[0]
    two.endpoint("e1", a)
    path = two.folder / "noted"
    with a.client() as client:
        assert client.submit(note, str(path), -1, endpoint="e1").result(60) == -1
    function = a.http("GET", "/v1/functions").json["items"][0]["id"]
    tasks = []
    for n in range(30):
        body = {"function": function, "endpoint": "e1", "args": [str(path), n], "key": f"key-{n}"}
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda s, body=body: s.http("POST", "/v1/tasks", body), two.servers))
        assert {x.status for x in answers} <= {200, 202}, answers
        assert len({x.json["id"] for x in answers}) == 1
        tasks.append(answers[0].json["id"])
    two.agree(31)
    assert sorted(path.read_text().split(), key=int) == [str(n) for n in range(-1, 30)]
