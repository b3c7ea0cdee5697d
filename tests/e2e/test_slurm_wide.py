"""Tasks that need more than one worker, on blocks of a real Slurm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from oncue.errors import OncueError, ShellFailed, TaskCancelled, TaskLost
from tests.e2e.test_slurm_endpoint import SLOW_S, YAML, SlurmEndpoint, slurm_endpoint
from tests.slurm.cluster import Cluster

PAIR = YAML.replace("max: 2, nodes: 1", "max: 1, nodes: 2").replace("idle: 2s", "idle: 30s")
FOUR = YAML.replace("cores_per_node: 2", "cores_per_node: 4").replace("per_node: 2}", "per_node: 4}")


def nap(seconds: float, note: str) -> None:
    with open(note, "a") as file:
        file.write("ran\n")
    time.sleep(seconds)


def where(note: str, seconds: float = 0.0) -> dict[str, str]:
    """Write down when it begins and ends; return what it is told of its nodes."""
    import os

    with open(note, "a") as file:
        file.write("ran\n")
    time.sleep(seconds)
    told = {name: os.environ[name] for name in ("ONCUE_NODES", "ONCUE_RANKS", "ONCUE_HOSTS", "ONCUE_HOSTFILE")}
    return told | {"hostfile": Path(told["ONCUE_HOSTFILE"]).read_text()}


@pytest.fixture
def endpoint(tmp_path: Path, slurm: Cluster) -> Iterator[SlurmEndpoint]:
    with slurm_endpoint(tmp_path, slurm) as found:
        yield found


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


def test_a_task_gets_two_whole_nodes_of_one_block_although_small_tasks_keep_coming(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(PAIR)
    endpoint.start()
    note, small = str(endpoint.folder / "note"), str(endpoint.folder / "small")
    with endpoint.system.client() as client:
        naps = [client.submit(nap, 0.5, small, endpoint="hpc") for _ in range(60)]
        endpoint.system.await_true(Path(small).exists, "small tasks run", SLOW_S)
        pair = client.with_options(endpoint="hpc", resources={"nodes": 2, "ranks": 4})

        told = pair.submit(where, note).result(SLOW_S)

        assert not all(t.done() for t in naps), "it did not wait for all of them"
        assert {t.result(SLOW_S) for t in naps} == {None}
    assert len(endpoint.jobs()) == 1
    assert (told["ONCUE_NODES"], told["ONCUE_RANKS"]) == ("2", "4")
    assert sorted(told["ONCUE_HOSTS"].split(",")) == endpoint.slurm.nodes
    assert sorted(told["hostfile"].split()) == endpoint.slurm.nodes


def test_ranks_of_an_mpi_function_run_on_the_reserved_nodes(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(PAIR)
    endpoint.start()
    script = 'echo "$ONCUE_RANK of $ONCUE_RANKS, $SLURM_PROCID on $SLURMD_NODENAME in $PWD: "${word}'
    with endpoint.system.client() as client:
        result = client.mpi(script, nodes=2, ranks=4, endpoint="hpc", word="a b; exit 1", sandbox=True).result(SLOW_S)
        lines = sorted(result.stdout.splitlines())

        assert [line.split()[:4] for line in lines] == [[str(n), "of", "4,", str(n)] for n in range(4)]
        assert sorted(line.split()[5] for line in lines) == ["n1", "n1", "n2", "n2"]
        assert all(line.endswith(": a b; exit 1") for line in lines)
        assert len({line.split()[7] for line in lines}) == 1, "one folder, which both nodes see"
        with pytest.raises(ShellFailed) as failed:
            client.mpi("exit 3", nodes=2, endpoint="hpc").result(SLOW_S)
        assert failed.value.returncode == 3
        one = client.mpi('echo "$SLURM_NNODES $SLURM_NTASKS"', ranks=2, endpoint="hpc").result(SLOW_S)
        assert one.stdout.split("\n")[:2] == ["1 2", "1 2"]


def test_a_cancel_ends_all_ranks_and_a_lost_node_ends_the_task_with_the_reason(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(PAIR)
    endpoint.start()
    note = str(endpoint.folder / "note")
    script = "trap '' TERM; echo $$ >> ${note}; while :; do sleep 1; done"
    with endpoint.system.client() as client:
        stubborn = client.mpi(script, nodes=2, endpoint="hpc", note=note)
        endpoint.await_running(note, 2)
        ranks = [int(line) for line in Path(note).read_text().split()]

        stubborn.cancel()

        with pytest.raises(TaskCancelled):
            stubborn.result(SLOW_S)
        endpoint.system.await_true(lambda: not any(map(psutil.pid_exists, ranks)), "all ranks end", SLOW_S)
        Path(note).unlink()
        task = client.mpi("echo $$ >> ${note}; sleep 600", nodes=2, endpoint="hpc", note=note)
        endpoint.await_running(note, 2)
        (job,) = endpoint.slurm.active_jobs()

        endpoint.slurm.kill_node("n2")

        with pytest.raises(TaskLost, match=f"the node n2 of job {job}"):
            task.result(SLOW_S)
