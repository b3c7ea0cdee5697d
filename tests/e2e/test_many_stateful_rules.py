"""Stateful rules on several servers of one Kafka.

Whichever server runs them, each event is in exactly one batch, also after the log has deleted the
oldest matches.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.config import Settings
from oncue.log import open_log
from oncue.protocol import payload
from oncue.protocol.codec import decode
from oncue.protocol.records import TaskFrame
from oncue.protocol.topics import MATCHES, TaskTopics
from tests.e2e.many import Many, many_servers
from tests.e2e.running import System
from tests.integration.embedded_site import all_of

RULES = """
rules:
  - name: gathered
    on: {type: layer.written}
    dedupe: {key: "${data.n}", ttl: 1h}
    batch: {count: 4}
    run: {function: gather.py:gather, endpoint: e1, args: {ns: "${each.data.n}"}}
"""


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        first = found.servers[0]
        first.oncue("endpoint", "register", "e1")  # its agent is not needed: the test counts tasks
        first.write("gather.py", "def gather(ns):\n    return ns\n")
        first.write("rules.yaml", RULES)
        first.oncue("deploy", "rules.yaml", "--yes")
        yield found


def emit(server: System, *numbers: int) -> None:
    for n in numbers:
        body = {"source": "/b", "type": "layer.written", "data": {"n": n}}
        answer = server.http("POST", "/v1/events", body)
        assert answer.status == 202, answer


def waiting(server: System) -> int:
    answer = server.http("GET", "/v1/rules/gathered")
    return int(answer.json["waiting"]) if answer.status == 200 else -1


def server_with_window(servers: list[System], count: int) -> System:
    """Return the server that has an open window with `count` events."""

    def found() -> System | None:
        return next((server for server in servers if waiting(server) == count), None)

    one = servers[0].await_true(found, f"{count} events wait")
    assert one is not None
    return one


def ends(log_url: str, cut: dict[int, int] | None = None) -> dict[int, int]:
    """Return the end of each partition; with `cut`, delete the records before it."""

    async def main() -> dict[int, int]:
        log = await open_log(log_url, Settings())
        try:
            for number, before in (cut or {}).items():
                await log.truncate(MATCHES, number, before)
            if cut:
                begins = await log.begin_offsets([MATCHES])
                assert any(begins.values()), begins
            return {number: end for (_, number), end in (await log.end_offsets([MATCHES])).items()}
        finally:
            await log.close()

    return asyncio.run(main())


def batches(many: Many, server: System, count: int) -> list[Any]:
    """Return the arguments of the tasks in the log, by task id: a task may be there twice."""
    (endpoint,) = [e["id"] for e in server.http("GET", "/v1/endpoints").json if e["name"] == "e1"]

    async def main() -> dict[bytes, Any]:
        log = await open_log(many.log, Settings())
        try:
            frames = [decode(TaskFrame, r.value) for r in await all_of(log, TaskTopics().of(endpoint))]
        finally:
            await log.close()
        return {task.id: payload.unpack_args(task.args)[1]["ns"] for frame in frames for task in frame.tasks}

    def enough() -> list[Any]:
        found = asyncio.run(main())
        return list(found.values()) if len(found) >= count else []

    found = server.await_true(enough, f"{count} tasks")
    assert len(found) == count, found
    return sorted(found)


@pytest.mark.timeout(240)
def test_an_open_batch_survives_a_kill_after_the_log_deleted_its_first_matches(two: Many) -> None:
    emit(two.servers[0], 1, 2)
    server_with_window(two.servers, 2)
    middle = ends(two.log)
    emit(two.servers[0], 3, 4, 5, 6)
    first = server_with_window(two.servers, 2)
    other = next(server for server in two.servers if server is not first)
    # Half of a batch that has fired is gone from the log: read again, its other half would open a batch.
    ends(two.log, cut=middle)
    first.server.kill()
    emit(other, 6, 7, 3)  # 6 and 3 are doubles
    server_with_window([other], 3)
    emit(other, 8)
    assert batches(two, other, 2) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    # And back.
    emit(other, 9, 10)
    server_with_window([other], 2)
    middle = ends(two.log)
    first.up("--no-endpoint")
    ends(two.log, cut=middle)
    other.server.kill()
    emit(first, 10, 11, 12, 13)
    server_with_window([first], 1)
    assert batches(two, first, 3) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert not first.http("GET", "/v1/dead").json["items"]


@pytest.mark.timeout(240)
def test_a_server_stopped_past_its_session_counts_nothing_twice(two: Many) -> None:
    emit(two.servers[0], 1, 2)
    first = server_with_window(two.servers, 2)
    other = next(server for server in two.servers if server is not first)
    process = two.pause(first)
    emit(other, 3, 4, 5)
    server_with_window([other], 1)
    assert batches(two, other, 1) == [[1, 2, 3, 4]]
    os.kill(process.pid, signal.SIGCONT)
    emit(other, 6, 7, 8, 9, 10)
    server_with_window(two.servers, 2)
    assert batches(two, other, 2) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert not other.http("GET", "/v1/dead").json["items"]


@pytest.mark.timeout(240)
def test_any_server_explains_an_event(two: Many) -> None:
    emit(two.servers[0], 1, 2)
    server_with_window(two.servers, 2)
    event = '{"specversion": "1.0", "id": "x", "source": "/b", "type": "layer.written", "data": {"n": %d}}'
    for server in two.servers:
        server.write("double.json", event % 2)
        server.write("new.json", event % 3)
        assert "the key 2 fired" in server.json("rules", "explain", "gathered", "double.json")["why"]
        assert "2 of 4 events in the open window" in server.json("rules", "explain", "gathered", "new.json")["why"]


@pytest.mark.timeout(300)
def test_servers_killed_and_stopped_repeatedly_in_a_stream_of_events(two: Many) -> None:
    """Events carry a number as dedupe key, so unanswered requests are repeated."""
    chance = random.Random(7)
    sent = 0

    def send_events(server: System, count: int) -> None:
        nonlocal sent
        body = [
            {"specversion": "1.0", "source": "/b", "type": "layer.written", "id": str(n), "data": {"n": n}}
            for n in range(sent, sent + count)
        ]
        media = {"Content-Type": "application/cloudevents-batch+json"}
        server.await_true(
            lambda: server.http("POST", "/v1/events", body, media).status == 202, "the events are accepted"
        )
        sent += count

    for round_ in range(4):
        first, other = chance.sample(two.servers, 2)
        for _ in range(5):
            send_events(other, chance.randrange(1, 60))
        if round_ % 2:
            process = two.pause(first)
        else:
            first.server.kill()
        for _ in range(5):
            send_events(other, chance.randrange(1, 60))
        two.pass_session(chance.choice((0.3, 2.0)))
        if round_ % 2:
            os.kill(process.pid, signal.SIGCONT)
        else:
            first.up("--no-endpoint")
    send_events(two.servers[0], 4 - sent % 4 or 4)
    found = [n for batch in batches(two, two.servers[0], sent // 4) for n in batch]
    assert sorted(found) == list(range(sent))
