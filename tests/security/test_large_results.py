"""Results that are larger than the memory that anybody may use for them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.protocol.records import ERROR, LOST, OK
from tests.e2e.running import System, system_in
from tests.pool_rig import rig_in, script, why

RESULT = 200 << 20
GROWTH = 64 << 20  # of agent and server, while it passes through


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with system_in(tmp_path, "--workers", "1") as system:
        yield system


def test_agent_and_server_pass_on_a_large_result_in_pieces(system: System) -> None:
    agent, server = system.agent_and_workers()[0], system.server
    before = {p.pid: p.memory_info().rss for p in (agent, server)}
    most = dict(before)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for p in (agent, server):
                most[p.pid] = max(most[p.pid], p.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with system.client() as client:
            result = client.submit(lambda n: b"x" * n, RESULT).result(timeout=200)
    finally:
        ended.set()
        watcher.join()
    assert result == b"x" * RESULT
    assert {pid: most[pid] - before[pid] for pid in before if most[pid] - before[pid] > GROWTH} == {}


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS: run it on Linux")
@pytest.mark.parametrize("made", ["b'x' * (400 << 20)", "'x' * (400 << 20)", "['x' * 1000] * 10**6"])
def test_a_result_without_memory_for_a_copy_is_stored_or_a_clear_error(tmp_path: Path, made: str) -> None:
    with rig_in(tmp_path) as rig:
        ended = rig.one(
            script(
                "import psutil, resource\ndef f():\n most = psutil.Process().memory_info().vms + (500 << 20)\n"
                f" resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))\n return {made}"
            )
        )
        if made.startswith("b"):  # it is stored without a copy
            assert ended.status == OK
        else:  # msgspec 0.23 crashes
            assert ended.status in (ERROR, LOST)
            assert "memory" in why(ended).message + why(ended).remedy
        assert rig.value(lambda: len(b"x" * (600 << 20))) == 600 << 20, "the limit was the task's only"
