"""The sender thread: batches, repeated requests, rejections, flush."""

from __future__ import annotations

import threading

import pytest

from oncue import errors
from oncue.client import Client
from tests.unit.client.client_server import Server, double, serving


def test_loop_of_submits_is_batched(client: Client, server: Server) -> None:
    tasks = [client.submit(double, i) for i in range(2000)]
    assert [t.result(30) for t in tasks] == [2 * i for i in range(2000)]
    assert len(server.world.batches) < 200


def test_submit_from_many_threads(client: Client) -> None:
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        results[n] = [t.result(30) for t in [client.submit(double, n * 1000 + i) for i in range(100)]]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {n: [2 * (n * 1000 + i) for i in range(100)] for n in range(8)}


def test_lost_answer_is_repeated_with_the_same_ids(client: Client, server: Server) -> None:
    server.world.lose_answers = 2
    tasks = client.map(double, range(10))
    assert client.gather(tasks, timeout=10) == [2 * i for i in range(10)]
    tasks[0]._wait_accepted()  # the outcomes come before the third answer
    assert len(server.world.tasks) == 10
    assert len({b.key for b in server.world.batches}) == 1
    assert len(server.world.batches) >= 3


def test_rejected_by_the_server(client: Client, server: Server) -> None:
    server.world.refuse = errors.NotFound("there is no endpoint 'moon'", remedy="look at `oncue endpoints list`")
    task = client.submit(double, 3, endpoint="moon")
    with pytest.raises(errors.NotFound, match="moon"):
        task.result(10)
    assert isinstance(task.exception(), errors.NotFound)
    assert task.done()
    server.world.refuse = None
    assert client.submit(double, 3).result(10) == 6


def test_submit_without_a_server() -> None:
    with serving() as server:
        pass
    with (
        Client(server.url, "t", patience=1) as client,
        pytest.raises(errors.Unreachable, match="nothing answers") as caught,
    ):
        client.submit(double, 1)
    assert "oncue up" in caught.value.remedy


def test_flush_waits_for_acceptance(client: Client, server: Server) -> None:
    client.flush()
    server.world.hold.clear()
    tasks = client.map(double, range(2000))
    client.flush()
    assert len(server.world.tasks) == 2000
    assert not any(t.done() for t in tasks)
