"""Many tasks, as they end."""

from __future__ import annotations

import pytest

from oncue import errors
from oncue.client import Client, as_completed
from tests.unit.client.client_server import Server, double


def test_as_completed_of_submitted_tasks_and_of_tasks_by_id(client: Client, server: Server) -> None:
    mine = client.map(double, range(20))
    assert {t.result() for t in as_completed(mine, 10)} == set(range(0, 40, 2))
    found = [client.task(t.id) for t in mine[:5]]
    assert sorted(t.result() for t in as_completed(found, 10)) == [0, 2, 4, 6, 8]
    with pytest.raises(errors.Invalid):
        client.task("xyz")
