"""The outcome thread: outcomes in any order, a server that restarts or is gone."""

from __future__ import annotations

import threading

import pytest

from oncue import errors
from oncue.client import Client, as_completed
from tests.unit.client.client_server import Server, World, double, serving


def test_early_and_duplicate_outcomes(client: Client, server: Server) -> None:
    server.world.early, server.world.copies = True, 3
    assert client.gather(client.map(double, range(50)), timeout=10) == [2 * i for i in range(50)]
    seen: list[str] = []
    task = client.submit(double, 4)
    task.add_done_callback(lambda t: seen.append(t.id))
    assert task.result(10) == 8
    client.submit(double, 5).result(10)  # after the duplicates of the first
    assert seen == [task.id]


def test_server_restart_while_waiting() -> None:
    world = World()
    first = Server(world)
    client = Client(first.url, "t", patience=20)
    world.hold.clear()
    task = client.submit(double, 3)
    assert world.received.wait(10)
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(task.result(20)))
    waiter.start()
    world.mute = True  # the server dies before it sends this outcome
    world.hold.set()
    assert world.ran.wait(10)  # before the server dies: nothing here would run it again
    first.stop()
    world.mute = False
    late = client.submit(double, 4)  # while nothing listens
    second = Server(world, first.port)
    try:
        waiter.join(20)
        assert results == [6]
        assert late.result(20) == 8
        assert len(world.tasks) == 2
    finally:
        client.close()
        second.stop()


def test_outcomes_are_requested_while_the_server_has_too_many_streams(server: Server) -> None:
    server.world.no_stream = True
    with Client(server.url, "t", patience=0.01) as client:
        assert client.gather(client.map(double, range(50)), timeout=20) == [2 * i for i in range(50)]
        server.world.no_stream = False
        assert client.submit(double, 3).result(20) == 6


def test_outcome_missing_in_the_stream_is_requested(server: Server) -> None:
    server.world.mute = True
    with Client(server.url, "t") as client:
        task = client.submit(double, 3)
        assert client.task(task.id).result(10) == 6
        client.session.outcomes.request_open(0.0)
        assert task.result(1) == 6


def test_waiting_ends_when_the_patience_is_over() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=0.3)
        server.world.hold.clear()
        waiting = client.submit(double, 1)
        waiting._wait_accepted()
        server.world.mute = True
    later = client.submit(double, 2)
    with pytest.raises(errors.Unreachable):
        waiting.result(20)
    with pytest.raises(errors.Unreachable):
        later.result(20)
    with pytest.raises(errors.Unreachable):
        list(as_completed([waiting], 20))
    client.close(flush=False)
