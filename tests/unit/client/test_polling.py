"""Outcomes of tasks that this client did not submit."""

from __future__ import annotations

import threading

import pytest

from oncue import errors
from oncue.client import Client, Options, as_completed, polling
from oncue.client.batch import Batch
from oncue.protocol import payload
from tests.unit.client.client_server import Server, double, packed


def test_unknown_task_is_not_found(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = "0192f0c1e5a07c3e8a1b2c3d4e5f0000"
    with pytest.raises(TimeoutError, match=f"knows no task {unknown} after 0.05 s"):
        client.task(unknown).result(0.05)
    monkeypatch.setattr(polling, "YOUNG_S", 0.3)
    with pytest.raises(errors.NotFound, match=unknown) as caught:
        client.task(unknown).result()
    assert "oncue tasks list" in caught.value.remedy
    assert isinstance(client.task(unknown).exception(), errors.NotFound)
    mine = client.submit(double, 3)
    assert {t.id for t in as_completed([client.task(unknown), client.task(mine.id)], 20)} == {unknown, mine.id}
    with pytest.raises(errors.NotFound):
        client.gather([client.task(mine.id), client.task(unknown)])


def test_task_submitted_later_by_another_client(server: Server) -> None:
    """Its id is known before the server has it."""
    with Client(server.url, "t") as client, Client(server.url, "t") as other:
        other.me  # noqa: B018
        batch = Batch(other.session, "ada", packed(double).id, "double", Options())
        batch.add(payload.pack_args((4,), {}))
        other.register(packed(double))
        results: list[int] = []
        waiter = threading.Thread(target=lambda: results.append(client.task(batch.id(0).hex()).result(20)))
        waiter.start()
        assert server.world.polled.wait(10)  # it was requested, and the server did not know it
        other.session.sender._post(batch)
        waiter.join(20)
        assert results == [8]
