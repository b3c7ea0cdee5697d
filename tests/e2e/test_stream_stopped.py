"""A stream worker that is stopped past its session recovers when it is continued."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from tests.e2e.running import StreamWorker, System
from tests.e2e.test_stream import FUNCTION, RULES, emit, results, rule

pytestmark = pytest.mark.timeout(240)
PAUSE_S = 12.0  # some sessions of 2 s, and longer than a rebalance waits for a member


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another"])
def test_a_worker_stopped_past_its_session_goes_on(
    streamed: System, start_worker: Callable[..., StreamWorker], others: int
) -> None:
    streamed.write("tomo.py", FUNCTION)
    streamed.write("layers.yaml", RULES)
    streamed.oncue("deploy", "--yes", "layers.yaml")
    worker = start_worker(streamed)
    emit(streamed, 7, 1, 2)
    streamed.await_true(lambda: rule(streamed)["waiting"] == 2, "the window is open")
    for _ in range(others):
        start_worker(streamed)

    os.kill(worker.process.pid, signal.SIGSTOP)
    threading.Event().wait(PAUSE_S)
    os.kill(worker.process.pid, signal.SIGCONT)

    emit(streamed, 7, 2, 3)  # one is a double still
    assert results(streamed, 1) == [[3, ["/7/1", "/7/2", "/7/3"]]]
    emit(streamed, 8, 1, 2, 3)
    assert results(streamed, 2) == [[3, ["/7/1", "/7/2", "/7/3"]], [3, ["/8/1", "/8/2", "/8/3"]]]
    assert worker.process.poll() is None
