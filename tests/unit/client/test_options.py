"""Options of calls: checked here, sent to the server."""

from __future__ import annotations

from typing import Any

import pytest

from oncue import errors
from oncue.client import Client, Options, Retry
from tests.unit.client.client_server import Server, double


def test_options_are_sent(client: Client, server: Server) -> None:
    options = client.with_options(retry=Retry(max=2, base=0.5, on=("timeout",)), timeout=1.5, expires=60)
    options.submit(double, 1).result(10)
    sent = server.world.batches[-1]
    assert sent.retry is not None
    assert (sent.retry.max, sent.retry.base_ms, sent.retry.on) == (2, 500, ["timeout"])
    assert (sent.timeout_ms, sent.expires_ms) == (1500, 60_000)


def test_unknown_and_invalid_options(client: Client) -> None:
    with pytest.raises(errors.Invalid, match="no option 'retries'"):
        client.with_options(retries=1)
    with pytest.raises(errors.Invalid, match="not right"):
        client.with_options(timeout="soon")
    assert client.with_options(timeout=2).with_options(retry=1).options == Options(retry=1, timeout=2)


@pytest.mark.parametrize("seconds", [0, 0.0, -1, 0.0004, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["timeout", "expires"])
def test_limits_below_one_millisecond_are_invalid(client: Client, name: str, seconds: float) -> None:
    with pytest.raises(errors.Invalid, match=f"^{name} is ") as caught:
        client.with_options(**{name: seconds})
    assert caught.value.remedy == f"leave {name} out for no limit"
    with pytest.raises(errors.Invalid):
        Options(**{name: seconds})


@pytest.mark.parametrize("retry", [-1, Retry(max=-1)])
def test_negative_retries_are_invalid(client: Client, retry: Any) -> None:
    with pytest.raises(errors.Invalid, match="retry is -1; it is how often to try again: 0 or more"):
        client.with_options(retry=retry)
