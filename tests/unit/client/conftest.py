"""Fixtures of the client's tests: a server in this process, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from oncue import functions
from oncue.client import Client
from tests.unit.client.client_server import Server, double, packed, serving


@pytest.fixture(autouse=True)
def plain_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack functions as plain pickles, which the test server runs, instead of FunctionBody."""
    monkeypatch.setattr(functions, "pack_function", packed)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "t", patience=10) as client:
        yield client


@pytest.fixture
def offline() -> Iterator[tuple[Client, int]]:
    """A client that has registered `double` and whose server is gone, and the server's port."""
    with serving() as server:
        client = Client(server.url, "t", patience=20, linger=0.1)
        client.submit(double, 1).result(10)
    yield client, server.port
    client.close(flush=False)
