"""One owner with many callers and streams: another owner's task takes hardly longer."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from oncue.dispatcher.http.streams import PER_OWNER
from tests.e2e.running import System

CALLERS = Path(__file__).with_name("busy_callers.py")
CALL = {"function": "one", "endpoint": "local", "wait_ms": 60_000}


@pytest.fixture(scope="module")
def other(served: System) -> str:
    """Return tokens of another owner than the endpoint's."""
    served.write("one.py", "def one():\n    return 1\n")
    served.oncue("functions", "register", "one.py:one")
    made = []
    for i in range(9):
        answer = served.http("POST", "/v1/tokens", {"name": f"busy{i}", "subject": "mallory", "scopes": ["user"]})
        assert answer.status == 201, answer
        made.append(answer.json["token"])
    return ",".join(made)


@contextlib.contextmanager
def busy(served: System, token: str, callers: int, streams: int) -> Iterator[dict[str, object]]:
    """Let the other owner be busy; yield what it found, which is there afterwards."""
    given = [sys.executable, "-I", str(CALLERS), served.local["url"], token, str(callers), str(streams)]
    found: dict[str, object] = {}
    with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield found
        finally:
            found |= json.loads(process.communicate("")[0] or "{}")


def latencies(served: System, count: int = 30) -> list[float]:
    """Run a task again and again. Return how long each took, in seconds."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        answer = served.http("POST", "/v1/tasks", CALL)
        found.append(time.perf_counter() - began)
        assert (answer.status, answer.json["state"]) == (202, "succeeded"), answer
    return sorted(found)


def test_another_owners_task_is_hardly_slower(served: System, other: str) -> None:
    problems = []
    for _ in range(3):
        alone = latencies(served)
        with busy(served, other, 50, 500) as found:
            beside = latencies(served)
        shown = f"median {median(alone):.3f} s alone, {median(beside):.3f} s beside; worst {beside[-1]:.3f} s; {found}"
        print(shown)
        if median(beside) < max(0.1, 8 * median(alone)) and beside[-1] < 0.5:
            return
        problems.append(shown)
    raise AssertionError("\n".join(problems))


def test_streams_of_one_owner_are_limited_whatever_tokens_it_makes(served: System, other: str) -> None:
    with busy(served, other, 0, 500):
        streams = served.http("GET", "/metrics").body.decode().partition("\noncue_http_streams ")[2].split()[0]
        assert float(streams) <= PER_OWNER + 10
