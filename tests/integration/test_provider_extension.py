"""The provider and the container runtime of docs/extending.md run a task to its result.

Run as a module, this file is the agent's process with both of them in their catalogues.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.endpoint import run
from oncue.endpoint.containers.base import WorkerCommand
from oncue.endpoint.containers.catalog import CONTAINERS
from oncue.endpoint.containers.host import HostRuntime
from oncue.endpoint.providers.base import BlockRequest, BlockState, BlockStatus, Provider, ProviderContext
from oncue.endpoint.providers.catalog import PROVIDERS
from oncue.endpoint.providers.local import LocalProvider
from oncue.functions import pack_function
from oncue.protocol.payload import unpack
from oncue.protocol.records import OK
from tests.extending import module
from tests.integration.test_agent import Bridge


def where_it_ran(name: str) -> str:

    return f"{name}: job {os.environ['TOY_JOB']}, {os.environ['TOY_BINDS']} binds"


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path)
    yield bridge
    bridge.close()


def test_a_provider_and_a_container_run_a_task_to_its_result(tmp_path: Path, bridge: Bridge) -> None:
    packed = pack_function(where_it_ran)
    bridge.functions[packed.id] = packed
    module = "tests.integration.test_provider_extension"
    agent = subprocess.Popen([sys.executable, "-m", module, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        bridge.until(lambda: bool(bridge.hellos))

        bridge.dispatch("where_it_ran", {1: ("frame",)})
        bridge.until(lambda: len(bridge.ended) == 1)

        end = bridge.ended[0]
        assert end.status == OK, end
        assert unpack(end.value) == "frame: job 4711, 3 binds"
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    submit, cancel = (tmp_path / "jobs").read_text().splitlines()
    _, block_id, workers = submit.split()
    assert workers == "2"
    assert cancel == f"cancel {block_id}"


def test_the_local_provider_keeps_the_contract(tmp_path: Path) -> None:
    context = ProviderContext(tmp_path, tmp_path / "blobs", HostRuntime())
    provider: Provider = LocalProvider(context)

    block = provider.submit(BlockRequest("a", 1))
    assert provider.status(["a", "b"]) == {"a": BlockStatus(BlockState.PENDING)}, "unknown blocks are left out"

    pool = block.pool
    readable, _, _ = select.select(pool.fds(), [], [], 30)
    pool.on_readable(readable[0])
    assert provider.status(["a"]) == {"a": BlockStatus(BlockState.RUNNING)}

    provider.cancel(["a"], 0.0)
    provider.cancel(["a"], 0.0)
    assert provider.status(["a"]) == {"a": BlockStatus(BlockState.ENDED)}
    assert pool.fds() == []


def test_a_block_whose_workers_cannot_start_says_why(tmp_path: Path) -> None:
    class Broken:
        def command_line(self, worker: WorkerCommand) -> list[str]:
            return [str(tmp_path / "no-such-runtime"), worker.python]

    provider = LocalProvider(ProviderContext(tmp_path, tmp_path / "blobs", Broken()))

    provider.submit(BlockRequest("a", 1))

    status = provider.status(["a"])["a"]
    assert status.state is BlockState.PENDING
    assert "no-such-runtime" in status.reason
    provider.cancel(["a"], 0.0)


if __name__ == "__main__":
    PROVIDERS["toy"] = module("toy_scheduler").ToyScheduler
    CONTAINERS["toy"] = module("toy_container").ToyContainer
    sys.exit(run.main(["--dir", sys.argv[1]], provider="toy", container="toy"))
