"""The system clock of a stream worker is stepped, while windows are open and keys are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.running import StreamWorker, System
from tests.e2e.system_clock import SystemClock, needs_faketime
from tests.e2e.test_clock_steps import RULES, STEPS, WORK, values

pytestmark = [needs_faketime, pytest.mark.timeout(300)]


def test_a_step_of_a_stream_workers_clock_closes_no_window_and_forgets_no_key(
    streamed: System, start_worker: Callable[..., StreamWorker], tmp_path: Path
) -> None:
    streamed.write("work.py", WORK)
    streamed.write("clock.yaml", RULES.replace("FOLDER", str(tmp_path)).replace("endpoint: node", "endpoint: local"))
    clock = SystemClock(tmp_path, "worker")
    streamed.oncue("deploy", "clock.yaml", "--yes")
    start_worker(streamed, **clock.environment())
    for step_s in STEPS[2:]:
        once = {"kind": "once", "n": f"n{step_s}"}
        batch = {"kind": "batch", "series": str(step_s), "n": f"n{step_s}"}
        assert streamed.http("POST", "/hooks/door", once, token=None).status == 202
        streamed.await_true(lambda n=f"n{step_s}": n in values(streamed, "once"), "the first event has passed")
        assert streamed.http("POST", "/hooks/door", batch, token=None).status == 202

        clock.step(step_s)

        for again in (batch, once):
            assert streamed.http("POST", "/hooks/door", again, token=None).status == 202
        wanted = [f"n{step_s}"] * 2
        streamed.await_true(lambda w=wanted: w in values(streamed, "collected"), "the window has closed, with both")
    assert sorted(values(streamed, "once")) == sorted(f"n{s}" for s in STEPS[2:])
