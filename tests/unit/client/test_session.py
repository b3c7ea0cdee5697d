"""Session: lifetime, forks, trust, registered functions."""

from __future__ import annotations

import functools
import gc
import os
from typing import Any

import pytest

from oncue import errors
from oncue.client import Client
from tests.unit.client.client_server import (
    Bomb,
    Server,
    World,
    double,
    shout,
    wait_until_unreachable,
)


def test_closed_and_unreferenced_clients(server: Server) -> None:
    client = Client(server.url, "t")
    task = client.submit(double, 1)
    client.close()
    client.close()
    assert task._batch.accepted  # close waits for that
    with pytest.raises(errors.Invalid, match="closed"):
        client.submit(double, 2)
    forgotten = Client(server.url, "t").submit(double, 8)
    assert forgotten.result(10) == 16  # the handle keeps its session
    del forgotten
    gc.collect()


def test_resource_keeps_its_session_open(server: Server) -> None:
    assert Client(server.url, "t").endpoints.get("local").state == "connected"
    with pytest.raises(errors.NotFound, match="no such task"):
        Client(server.url, "t").tasks.get("00" * 16)
    with pytest.raises(errors.Unauthorized):
        Client(server.url, "bad").endpoints.get("local")
    with pytest.raises(errors.Unauthorized):
        next(Client(server.url, "bad").live())
    client = Client(server.url, "t")
    sender, events = client.session.sender, client.events
    del client
    gc.collect()
    assert events.emit({"id": "1", "type": "t", "source": "s"}).count == 1
    del events
    assert sender.closed  # at once: there is no cycle that keeps an unreferenced session


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child(client: Client, server: Server) -> None:
    before = client.submit(double, 10)
    assert before.result(10) == 20
    server.world.hold.clear()
    open_task = client.submit(double, 11)
    open_task._wait_accepted()
    server.world.hold.set()
    pid = os.fork()
    if pid == 0:
        try:
            good = client.submit(double, 3).result(10) == 6 and open_task.result(10) == 22
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert open_task.result(10) == 22
    assert client.submit(double, 4).result(10) == 8


def test_function_is_registered_once(client: Client, server: Server) -> None:
    for i in range(5):
        client.submit(double, i).result(10)
    assert len(server.world.functions) == 1
    client.submit(functools.partial(double, 1)).result(10)
    assert len(server.world.functions) == 2
    with pytest.raises(errors.Invalid, match="cannot be run"):
        client.submit(3)  # type: ignore[arg-type]


def test_new_function_is_registered_when_the_server_is_back(offline: tuple[Client, int]) -> None:
    client, port = offline
    task = client.submit(shout, "a")
    many = client.map(shout, ["b", "c"])
    wait_until_unreachable(client)
    second = Server(World(), port)
    try:
        assert [t.result(20) for t in (task, *many)] == ["A", "B", "C"]
        assert [f.name for f in second.world.functions.values()] == ["shout"]
    finally:
        client.close(flush=False)
        second.stop()


def test_untrusted_pickles_stay_raw(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.world.owner = "mallory"
    with Client(server.url, "t") as client:
        with pytest.raises(errors.UntrustedResult) as caught:
            client.submit(Bomb, endpoint="hers").result(10)
        assert caught.value.raw[:1] == b"p"
        assert not (tmp_path / "bomb-went-off").exists()
        assert client.submit(double, 2, endpoint="hers").result(10) == 4  # plain data is harmless
    with Client(server.url, "t", trust=["hers"]) as client:
        assert client.submit(complex, 1, 2, endpoint="hers").result(10) == 1 + 2j


def test_trust_uses_the_endpoint_id(server: Server, tmp_path: Any, monkeypatch: Any) -> None:
    """An administrator sees a task of somebody else's endpoint with the name of an own one."""
    monkeypatch.chdir(tmp_path)
    with Client(server.url, "t") as client:
        task_id = client.submit(Bomb).id
        server.world.endpoint_id = "ep_hers"
        with pytest.raises(errors.UntrustedResult):
            client.task(task_id).result(10)
        assert not (tmp_path / "bomb-went-off").exists()
        good = client.submit(complex, 1, 2)
        server.world.endpoint_id = "ep_mine"
        assert client.task(good.id).result(10) == 1 + 2j


def test_an_endpoint_that_is_not_to_be_seen_is_not_asked_for_each_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def owner(key: str) -> str:
        asked.append(key)
        raise errors.NotFound("no such endpoint")

    monkeypatch.setattr(client.session, "_endpoint_owner", owner)

    assert [client.trusts("hers") for _ in range(100)] == [False] * 100
    assert asked == ["hers"]
