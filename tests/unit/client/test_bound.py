"""Preset options and keywords of a call."""

from __future__ import annotations

import pytest

from oncue import errors
from oncue.client import Client
from tests.unit.client.client_server import Server, double


def test_keywords_are_passed_to_the_function(client: Client) -> None:
    careful = client.with_options(retry=2, timeout=3)
    assert careful.submit(dict, retry=7, timeout=1).result(10) == {"retry": 7, "timeout": 1}
    assert client.call(dict, (), {"endpoint": "mine"}, careful.options).result(10) == {"endpoint": "mine"}


def test_endpoint_keyword_with_and_without_options(client: Client, server: Server) -> None:
    careful = client.with_options(endpoint="polaris", timeout=3)
    for caller in (client, careful):
        asked = [
            caller.submit(double, 1, endpoint="aurora"),
            *caller.map(double, [1], endpoint="aurora"),
            *caller.starmap(double, [(1,)], endpoint="aurora"),
            caller.executor(endpoint="aurora").submit(double, 1).task,
        ]
        assert client.gather(asked, timeout=10) == [2] * 4
        assert {t.endpoint for t in asked} == {"aurora"}
    assert {b.endpoint for b in server.world.batches} == {"aurora"}
    assert {b.timeout_ms for b in server.world.batches} == {None, 3_000}
    assert careful.submit(double, 1).endpoint == "polaris"
    assert client.starmap(pow, [(2, 5)])[0].result(10) == 32
    with pytest.raises(errors.Invalid, match="endpoint"):
        careful.submit(double, 1, endpoint=3)  # type: ignore[arg-type]
