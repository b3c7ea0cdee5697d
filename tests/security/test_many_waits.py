"""Many requests of one caller wait for as many tasks as they may: others notice nothing."""

from __future__ import annotations

import os

import msgspec
import psutil

from tests.e2e.running import System
from tests.security.raw_http import in_threads
from tests.security.stall import check_no_stall

IDS, CALLERS = 65_000, 20
MOST_MB = 250


def test_requests_that_wait_for_many_tasks(system: System) -> None:
    body = msgspec.msgpack.encode({"ids": [os.urandom(16) for _ in range(IDS)], "wait_ms": 2_000})
    before = psutil.Process(system.server.pid).memory_info().rss

    def wait() -> None:
        statuses: list[int] = []
        headers = {"Content-Type": "application/msgpack"}
        in_threads(CALLERS, lambda: statuses.append(system.http("POST", "/v1/tasks/outcomes", body, headers).status))
        assert {200, 429} >= set(statuses)
        assert 200 in statuses

    check_no_stall(system.local["url"], wait)
    assert psutil.Process(system.server.pid).memory_info().rss - before < MOST_MB << 20
