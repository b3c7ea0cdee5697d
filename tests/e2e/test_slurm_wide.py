"""Tasks that need more than one worker, on blocks of a real Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.errors import OncueError
from tests.e2e.running import system_in
from tests.e2e.test_slurm_endpoint import SLOW_S, YAML, SlurmEndpoint
from tests.slurm.cluster import Cluster

FOUR = YAML.replace("cores_per_node: 2", "cores_per_node: 4").replace("per_node: 2}", "per_node: 4}")


def nap(seconds: float, note: str) -> None:
    with open(note, "a") as file:
        file.write("ran\n")
    time.sleep(seconds)


@pytest.fixture
def endpoint(tmp_path: Path, slurm: Cluster) -> Iterator[SlurmEndpoint]:
    with system_in(tmp_path, "--no-endpoint") as system:
        found = SlurmEndpoint(system, slurm)
        try:
            yield found
        finally:
            system.oncue("endpoint", "stop", *found.place, code=None)


def test_demand_counts_the_cores_that_tasks_ask_for(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(FOUR)
    endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        wide = client.with_options(endpoint="hpc", resources={"cores": 4})
        tasks = [wide.submit(nap, 600.0, note) for _ in range(2)]

        endpoint.await_running(note, 2)  # side by side: each has a node, which its block alone has

        assert len(endpoint.slurm.active_jobs()) == 2
        for task in tasks:
            task.cancel()


def test_what_no_block_can_hold_is_refused_at_once_with_the_reason(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(FOUR)
    endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        for resources, words in (
            ({"nodes": 2}, "needs 2 nodes, and a block of this endpoint has one: raise blocks.nodes"),
            ({"cores": 5}, "needs 5 cores, and a node's workers have 4"),
        ):
            with pytest.raises(OncueError, match=words):
                client.with_options(endpoint="hpc", resources=resources).submit(nap, 0.0, note).result(SLOW_S)
    assert not endpoint.jobs()
    assert not Path(note).exists()
