"""Large arguments and results."""

from __future__ import annotations

import pytest

from oncue import errors
from oncue.client import Client
from tests.unit.client.client_server import Server


def test_large_payloads_and_results(client: Client, server: Server) -> None:
    big = b"\xff" * 3_000_000
    assert client.submit(lambda b: b, big).result(20) == big
    assert all(len(p) < 1000 for _, p in server.world.tasks.values())
    task = client.submit(lambda: b"z" * 2_000_000)
    assert task.wait(20)
    server.world.blobs.clear()
    with pytest.raises(errors.BlobMissing):
        task.result(10)


def test_damaged_blob(client: Client, server: Server) -> None:
    task = client.submit(lambda: b"z" * 2_000_000)
    assert task.wait(20)
    for name, content in server.world.blobs.items():
        server.world.blobs[name] = b"y" + content[1:]
    with pytest.raises(errors.BlobMissing, match="other bytes"):
        task.result(10)
