"""Long calls wait at the server, where they can be cancelled, whatever ran before."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e.running import PATIENCE_S, System

pytestmark = pytest.mark.embedded
WORKERS = 5


def same(seconds: float) -> None:
    time.sleep(seconds)


def other(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("long", [same, other])
def test_after_a_burst_of_short_calls_long_ones_can_be_cancelled(stopped: System, long: Callable[..., None]) -> None:
    stopped.up("--workers", str(WORKERS))
    stopped.await_connected()
    with stopped.client() as client:
        client.gather(client.map(same, [0] * 20_000), PATIENCE_S)
        executor = client.executor()

        futures = [executor.submit(long, 5) for _ in range(1_000)]
        client.flush(PATIENCE_S)
        stopped.await_true(lambda: futures[0].running(), "the first call runs")
        executor.shutdown(wait=False, cancel_futures=True)

        left = [f for f in futures if not f.cancelled()]
        assert WORKERS <= len(left) <= 200
        for future in left:  # or the test would wait for them
            future.task.cancel()


def test_short_calls_pass_long_ones_of_another_function(stopped: System) -> None:
    stopped.up("--workers", "2")
    stopped.await_connected()
    with stopped.client() as client:
        long = client.map(other, [0.3] * 40)
        client.flush(PATIENCE_S)
        short = client.map(same, [0] * 10)

        client.gather(short, PATIENCE_S)

        assert sum(task.done() for task in long) < 20  # of 6 s in all
        for task in long:
            task.cancel()
