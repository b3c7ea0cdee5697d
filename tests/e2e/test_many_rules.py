"""Rules, triggers, payloads and names on several servers that share a log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from oncue.log import Record, open_log
from tests.e2e.many import Many, many_servers
from tests.e2e.running import Answer, System
from tests.e2e.test_files import WORK, renamed, rules
from tests.e2e.test_stateful_rules import FUNCTION, rule_file, rule_of, send_events


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        found.endpoint("e1", found.servers[1])
        yield found


def trigger_of(server: System, name: str) -> dict[str, Any]:
    """Return the trigger; {"state": ""} until the server has read its record."""
    return next((t for t in server.http("GET", "/v1/triggers").json if t["name"] == name), {"state": ""})


def runs(server: System, name: str) -> bool:
    found = trigger_of(server, name)
    return found["state"] == "running" and not found["server"]


def runner(many: Many, name: str) -> System:
    """Return the server that runs the trigger."""

    def found() -> System | None:
        return next((s for s in many.servers if runs(s, name)), None)

    server = many.servers[0].await_true(found, f"trigger {name} runs")
    assert server is not None
    return server


def names(tasks: list[dict[str, Any]]) -> list[str]:
    return sorted(Path(t["value"]["path"]).name for t in tasks)


def test_a_file_trigger_runs_on_one_server_and_moves_when_that_is_killed(two: Many) -> None:
    a, b = two.servers
    folder = two.folder / "in"
    text = rules("det", folder).replace("endpoint: local", "endpoint: e1")
    a.write("work.py", WORK)
    a.write("det.yaml", text)
    a.oncue("deploy", "det.yaml", "--yes")
    one = runner(two, "det")
    other = b if one is a else a
    there = trigger_of(other, "det")
    assert (there["state"], there["looked"], there["server"]) == ("running", True, one.local["url"])
    renamed(folder, "one", 10)
    other.await_tasks(1, rule="det-measure")
    one.server.kill()
    renamed(folder, "two", 10)  # nobody watches
    other.await_true(lambda: runs(other, "det"), "the other runs it")
    renamed(folder, "three", 10)
    assert names(other.await_tasks(3, rule="det-measure")) == ["one.raw", "three.raw", "two.raw"]
    one.up("--no-endpoint")
    renamed(folder, "four", 10)
    for server in two.servers:
        assert names(server.await_tasks(4, rule="det-measure")) == ["four.raw", "one.raw", "three.raw", "two.raw"]


def test_a_deploy_applies_to_events_that_any_server_accepts_afterwards(two: Many) -> None:
    a, b = two.servers
    a.write("collect.py", FUNCTION)
    for n, (one, other) in enumerate(((a, b), (b, a), (a, b))):
        text = rule_file("{count: 1}").replace("run: {", "run: {endpoint: e1, ").replace("collected", f"rule{n}")
        one.write("collect.py", FUNCTION)
        one.write("door.yaml", text)
        one.oncue("deploy", "door.yaml", "--yes", "--replace")
        send_events(other, n)
        other.await_tasks(1, rule=f"rule{n}")
    assert len(two.agree(3)) == 3


def test_tokens_and_webhooks_are_valid_on_all_servers_at_once(two: Many) -> None:
    """A client that has the answer of one server may use any other."""
    a, b = two.servers
    for n in range(30):
        one, other = (a, b) if n % 2 else (b, a)
        made = one.http("POST", "/v1/tokens", {"name": f"t{n}"})
        assert made.status == 201, made
        assert other.http("GET", "/v1/tasks", token=made.json["token"]).status == 200
    assert other.http("GET", "/v1/tasks", token=made.json["token"][:-4] + "AAAA").status == 401
    one.write("collect.py", FUNCTION)
    for n in range(5):
        text = rule_file("{count: 1}").replace("run: {", "run: {endpoint: e1, ").replace("collected", f"rule{n}")
        text = text.replace("door", f"door{n}")
        one.write(f"door{n}.yaml", text)
        one.oncue("deploy", f"door{n}.yaml", "--yes")
        assert other.http("POST", f"/hooks/door{n}", {"n": n}, token=None).status == 202
    assert other.http("POST", "/hooks/never", {}, token=None).status == 404


def test_a_batch_that_is_open_when_its_server_is_killed_fires_once(two: Many) -> None:
    a, b = two.servers
    a.write("collect.py", FUNCTION)
    text = rule_file("{count: 6}", "dedupe: {ttl: 1h}").replace("run: {", "run: {endpoint: e1, ")
    a.write("door.yaml", text)
    a.oncue("deploy", "door.yaml", "--yes")
    send_events(a, 1, 2)
    send_events(b, 3, 2)

    def waits() -> System | None:
        return next((s for s in two.servers if rule_of(s)["waiting"] == 3), None)

    host = a.await_true(waits, "three events wait")
    assert host is not None
    other = b if host is a else a
    host.server.kill()
    send_events(other, 3, 4, 5)
    other.await_true(lambda: rule_of(other)["waiting"] == 5, "five events wait, on the other")
    send_events(other, 6)
    (task,) = other.await_tasks(1, rule="collected")
    assert sorted(other.http("GET", f"/v1/tasks/{task['id']}").json["value"]["ns"]) == [1, 2, 3, 4, 5, 6]
    host.up("--no-endpoint")
    two.agree(1)


def large(data: bytes) -> bytes:
    return data + data


def test_large_payloads_go_through_any_server(two: Many) -> None:
    for server in two.servers:
        with server.client() as client:
            data = server.local["url"].encode() * 40_000
            assert client.submit(large, data, endpoint="e1").result(60) == data + data
    health = two.servers[0].http("GET", "/health/ready").json
    assert health["checks"]["blobs"] == "ok", health


def test_read_your_writes_through_another_server(two: Many) -> None:
    a, b = two.servers
    for n in range(20):
        one, other = (a, b) if n % 2 else (b, a)
        answer = one.http("POST", "/v1/events", {"type": "t", "source": "s", "id": f"e{n}", "data": {}})
        assert answer.status in (200, 202), answer
        position = answer.headers["oncue-position"]
        seen = other.http("GET", "/v1/events?limit=1", headers={"Oncue-Position": position}).json
        assert seen["items"][0]["event"]["id"] == f"e{n}"


def test_an_endpoint_is_revoked_through_a_server_that_does_not_own_it(two: Many) -> None:
    for n, server in enumerate(two.servers):  # one of the two does not
        name = f"gone{n}"
        body = {"name": name, "public_key": zmq.curve_keypair()[0].decode()}
        assert server.http("POST", "/v1/endpoints", body).status < 300
        with server.client() as client:
            tasks = client.map(large, [b"x"] * 10, endpoint=name)
            server.await_true(lambda s=server, t=tasks[9]: s.http("GET", f"/v1/tasks/{t.id}").status == 200, "accepted")  # type: ignore[misc]
            assert two.servers[0].http("DELETE", f"/v1/endpoints/{name}").status < 300
            for task in tasks:
                with pytest.raises(Exception, match="revoked"):
                    task.result(30)
    assert {t["state"] for t in two.agree(20)} == {"refused"}


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(c) for c in calls]]


def test_concurrent_registrations_of_one_name_give_one_endpoint(two: Many) -> None:
    for n in range(5):
        bodies = [{"name": f"twin{n}", "public_key": zmq.curve_keypair()[0].decode()} for _ in two.servers]
        answers = at_once(
            *[partial(s.http, "POST", "/v1/endpoints", b) for s, b in zip(two.servers, bodies, strict=True)]
        )
        assert sorted(a.status for a in answers) in ([200, 409], [201, 409]), answers
        won = next(a.json["id"] for a in answers if a.status < 300)
        for server in two.servers:
            assert server.http("GET", f"/v1/endpoints/twin{n}").json["id"] == won


def test_concurrent_deploys_of_one_label_leave_one_file_in_force(two: Many) -> None:
    def file(n: int, k: int) -> dict[str, Any]:
        text = f"triggers:\n  - {{name: door{n}, kind: webhook, verify: none, type: t{k}}}\nrules: []\n"
        return {"files": [{"label": f"twin{n}", "text": text, "path": f"twin{n}.yaml"}], "functions": {}}

    for n in range(5):
        answers = at_once(*[partial(s.http, "POST", "/v1/rules", file(n, k)) for k, s in enumerate(two.servers)])
        statuses = sorted(a.status for a in answers)

        def same(label: str = f"twin{n}") -> bool:
            found = [s.http("GET", f"/v1/deployments/{label}").json for s in two.servers]
            return bool(found[0] == found[1])

        two.servers[0].await_true(same, "the same history on both")
        assert statuses in ([200, 200], [200, 409]), answers  # one after the other, or one of them


def test_local_endpoints_of_several_servers_have_names_of_their_own(kafka: tuple[str, str], tmp_path: Path) -> None:
    with many_servers(tmp_path, kafka[0], 0) as many:
        for _ in range(2):
            many.add("--workers", "1")
        a, b = many.servers
        found = [e["name"] for e in a.http("GET", "/v1/endpoints").json]
        assert len(found) == 2
        assert "local" in found
        tokens = [t["id"] for t in a.http("GET", "/v1/tokens").json if t["name"] == "local"]
        assert len(set(tokens)) == 2
        for server in (a, b):
            for name in found:
                server.await_connected(name)
            server.down()
            server.up("--workers", "1")
            assert sorted(e["name"] for e in server.http("GET", "/v1/endpoints").json) == sorted(found)


def test_a_joining_server_copies_the_view_of_a_peer(two: Many) -> None:
    a = two.servers[0]
    events = [{"type": "t", "source": "s", "id": f"e{n}", "data": {"n": n}, "specversion": "1.0"} for n in range(1_200)]
    for n in range(0, len(events), 400):
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        answer = a.http("POST", "/v1/events", json.dumps(events[n : n + 400]).encode(), headers)
        assert answer.status in (200, 202), answer
    with a.client() as client:
        assert client.submit(large, b"x", endpoint="e1").result(60) == b"xx"
    # A server knows the port of its API from its second start on.
    for server in two.servers:
        server.down()
        server.up("--no-endpoint")
    c = two.add()
    assert "was copied" in c.said()
    assert [t["id"] for t in c.http("GET", "/v1/tokens").json] == [t["id"] for t in a.http("GET", "/v1/tokens").json]
    pages = [s.http("GET", "/v1/events?limit=1000").json["items"] for s in (a, c)]
    assert len(pages[0]) == 1_000
    assert pages[0] == pages[1]
    two.agree(1)
    assert not list((a.data).glob("*.copy")) + list((c.data).glob("view.joining*"))


def test_an_undecodable_record_gives_one_dead_letter(two: Many) -> None:
    async def damage() -> None:
        log = await open_log(two.log)
        await log.append("oncue.results", [Record(b"\xc1")])
        await log.close()

    asyncio.run(damage())
    for server in two.servers:
        server.await_true(lambda s=server: s.http("GET", "/v1/dead").json["items"], "a letter")  # type: ignore[misc]
    with two.servers[0].client() as client:
        assert client.submit(large, b"x", endpoint="e1").result(60) == b"xx"  # later records are read
    two.agree(1)
    assert [len(s.http("GET", "/v1/dead").json["items"]) for s in two.servers] == [1, 1]
