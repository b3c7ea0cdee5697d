"""Calls: batches, and values that make the round trip unchanged."""

from __future__ import annotations

import pytest

from oncue.client import Client
from tests.unit.client.client_server import Server, double


@pytest.mark.parametrize("early", [False, True])
def test_map_sends_batches(client: Client, server: Server, early: bool) -> None:
    server.world.early = early
    tasks = client.map(double, range(3000))
    assert client.gather(tasks, timeout=30) == [2 * i for i in range(3000)]
    assert [len(b.payloads) for b in server.world.batches] == [1024, 1024, 952]
    assert len({t.id for t in tasks}) == 3000
    for task in (tasks[0], tasks[1024], tasks[2048]):  # outcomes may overtake their batch's answer
        task._wait_accepted()
    assert not client.session.outcomes.batches


def test_values_round_trip(client: Client) -> None:
    for value in (2**70, -(2**63), 2**64 - 1, "\ud800", b"", None, True, 1.5, (1, 2), {"a": [1]}, {1: 2}, 1j):
        found = client.submit(lambda v: v, value).result(10)
        assert found == value
        assert type(found) is type(value)
