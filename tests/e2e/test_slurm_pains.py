"""What users of other systems suffer from on batch schedulers: none of it here, on a real Slurm.

Further such tests: why a task waits, jobs that die at once (test_slurm_endpoint.py); two agents
(test_slurm_service.py); sacct that hangs (test_slurm_jobs.py); another Python (test_nodes.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_slurm_endpoint import SLOW_S, YAML, SlurmEndpoint, double, endpoint, nap
from tests.e2e.test_slurm_service import hold
from tests.slurm.cluster import Cluster

__all__ = ["endpoint"]  # the fixture


def node_processes(slurm: Cluster) -> list[psutil.Process]:
    """Return the processes of nodes and their workers, not the scripts of jobs."""
    found = []
    for pid in {pid for name in slurm.nodes for pid in slurm.node_processes(name)}:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if any("oncue.endpoint" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_a_hiccup_of_the_scheduler_does_not_become_43_blocks(endpoint: SlurmEndpoint) -> None:
    """For a minute, sbatch submits and does not answer, and squeue lists nothing, or garbage."""
    yaml = YAML.replace("max: 2", "max: 4").replace("cores_per_node: 2", "cores_per_node: 2, command_timeout: 1s")
    (endpoint.folder / "endpoint.yaml").write_text(yaml.replace("limits: {", "limits: {pending_blocks: 4, "))
    faults = endpoint.slurm.faults
    with endpoint.system.client() as client:
        with faults.answer_lost("sbatch") as submissions:
            with faults.babbling("squeue", ""):
                endpoint.start()
                tasks = client.map(double, range(500), endpoint="hpc")
                client.flush()
                calls = lambda: len(submissions.read_text().splitlines())  # noqa: E731
                endpoint.system.await_true(lambda: calls() >= 2, "blocks are asked for", SLOW_S)
            with faults.babbling("squeue", "slurm_load_jobs error: Socket timed out") as squeues:
                polled = lambda: len(squeues.read_text().splitlines())  # noqa: E731
                endpoint.system.await_true(lambda: polled() >= 3, "and looked for", SLOW_S)
            assert calls() <= 4

        assert [t.result(SLOW_S) for t in tasks] == [2 * n for n in range(500)]
    assert len(endpoint.jobs()) <= 4, "blocks.max"
    endpoint.stop()
    assert not endpoint.slurm.active_jobs()


def test_0_workers_a_node_end_in_a_reason_and_not_in_blocks_for_ever(endpoint: SlurmEndpoint) -> None:
    """The endpoint believes that nodes have GPUs, and they have none."""
    yaml = YAML.replace("workers: {per_node: 2}", "workers: {gpus: 1}").replace("max: 2", "max: 9")
    (endpoint.folder / "endpoint.yaml").write_text(yaml.replace("limits: {", "limits: {pending_blocks: 9, "))
    endpoint.start()
    with endpoint.system.client() as client:
        tasks = client.map(double, range(9), endpoint="hpc")
        client.flush()
        words = str(endpoint.system.await_true(lambda: endpoint.status()["breaker"], "it opens", SLOW_S))

        assert "this node has 0" in words
        assert len(endpoint.blocks("ended")) == len(endpoint.status()["blocks"]) == 3
        endpoint.system.await_true(
            lambda: "this node has 0" in client.tasks.get(tasks[0].id).why, "the task says so", SLOW_S
        )
        client.tasks.cancel([t.id for t in tasks])


def test_scale_in_ends_idle_blocks_and_no_running_task(endpoint: SlurmEndpoint, tmp_path: Path) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(YAML.replace("idle: 2s", "idle: 1s"))
    endpoint.start()
    note = str(tmp_path / "note")
    with endpoint.system.client() as client:
        tasks = [client.submit(nap, 6.0, note, endpoint="hpc") for _ in range(4)]
        endpoint.await_running(note, 4)
        started, release = tmp_path / "started", tmp_path / "release"
        long = client.submit(hold, str(started), str(release), endpoint="hpc")
        assert all(t.result(SLOW_S) for t in tasks)
        endpoint.system.await_true(started.exists, "the long one runs", SLOW_S)
        endpoint.system.await_true(lambda: len(endpoint.slurm.active_jobs()) == 1, "one block is given back", SLOW_S)
        assert not long.done()
        release.touch()
        assert long.result(SLOW_S) == "done"

    assert len(Path(note).read_text().splitlines()) == len(tasks), "each ran once"


@pytest.mark.parametrize("how", ["the agent and the job", "the process of the node"])
def test_no_worker_is_left_behind(endpoint: SlurmEndpoint, tmp_path: Path, how: str) -> None:
    agent = endpoint.start()
    note = str(tmp_path / "note")
    with endpoint.system.client() as client:
        task = client.submit(nap, 600.0, note, endpoint="hpc")
        endpoint.await_running(note, 1)
        here = node_processes(endpoint.slurm)
        (job,) = endpoint.slurm.active_jobs()
        if how == "the agent and the job":
            agent.kill()
            endpoint.slurm.cancel(job)
        else:
            next(p for p in here if "oncue.endpoint.node" in p.cmdline()).kill()

        left = lambda: [p for p in node_processes(endpoint.slurm) if p in here]  # noqa: E731
        endpoint.system.await_true(lambda: not left(), "all processes of the node end", SLOW_S)
        task.cancel()
