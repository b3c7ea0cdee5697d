"""The agent of an endpoint on a real Slurm as a service: set up from a preset, drained, cancelled, fenced."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import System, system_in
from tests.e2e.test_slurm_endpoint import YAML, SlurmEndpoint, double
from tests.slurm.cluster import Cluster


def hold(started: str, release: str) -> str:
    Path(started).touch()
    while not Path(release).exists():
        time.sleep(0.05)
    return "done"


@pytest.fixture
def system(tmp_path: Path, slurm: Cluster) -> Iterator[System]:
    with system_in(tmp_path, "--no-endpoint") as found:
        try:
            yield found
        finally:
            found.oncue("endpoint", "stop", "hpc", "--dir", str(found.folder / "hpc"), "--cancel", code=None)


def test_a_preset_runs_as_it_is_and_a_drain_leaves_no_job(system: System, slurm: Cluster, tmp_path: Path) -> None:
    place = ("hpc", "--dir", str(tmp_path / "hpc"))
    assert system.json("endpoint", "init", *place)["preset"] == "slurm"  # found on this machine
    system.oncue("endpoint", "start", *place, "--detach")
    started, release = tmp_path / "started", tmp_path / "release"
    with system.client() as client:
        assert client.submit(double, 4, endpoint="hpc").result(120) == 8
        task = client.submit(hold, str(started), str(release), endpoint="hpc")
        client.flush()
        system.await_true(started.exists, "the task runs on a node")

        stopping = system.start("endpoint", "stop", *place, "--drain")
        system.await_true(
            lambda: system.json("endpoint", "status", *place)["status"]["state"] == "draining", "it drains"
        )
        assert slurm.active_jobs()
        release.touch()

        assert task.result(120) == "done"
        output = stopping.communicate(timeout=120)
        assert stopping.returncode == 0, output
    assert not slurm.active_jobs()
    assert "BLOCK" in system.oncue("endpoint", "status", *place).stdout


def test_stop_with_cancel_ends_tasks_and_jobs(system: System, slurm: Cluster, tmp_path: Path) -> None:
    endpoint = SlurmEndpoint(system, slurm, YAML)
    endpoint.start()
    started = tmp_path / "started"
    with system.client() as client:
        client.submit(hold, str(started), str(tmp_path / "never"), endpoint="hpc")
        client.flush()
        system.await_true(started.exists, "the task runs on a node")

        system.oncue("endpoint", "stop", *endpoint.place, "--cancel")

        assert not slurm.active_jobs()


def test_an_agent_that_no_server_has_welcomed_touches_no_block(system: System, slurm: Cluster) -> None:
    """It may be a second agent of this endpoint, and the blocks the first one's."""
    endpoint = SlurmEndpoint(system, slurm, YAML.replace("max: 2", "min: 1, max: 1"))
    system.down()
    agent = system.start("endpoint", "start", *endpoint.place)
    try:
        told = "no server has welcomed this agent yet"
        system.await_true(lambda: told in endpoint.status()["scaling"], "the status says why it does nothing")
        assert not endpoint.jobs()

        system.up("--no-endpoint")
        endpoint.await_blocks("running")
        assert len(endpoint.jobs()) == 1
    finally:
        endpoint.stop()
        agent.communicate(timeout=60)
    assert not slurm.active_jobs()


def test_a_second_agent_that_is_fenced_leaves_the_firsts_jobs_alone(
    system: System, slurm: Cluster, tmp_path: Path
) -> None:
    endpoint = SlurmEndpoint(system, slurm, YAML)
    endpoint.start()
    started, release = tmp_path / "started", tmp_path / "release"
    with system.client() as client:
        task = client.submit(hold, str(started), str(release), endpoint="hpc")
        client.flush()
        system.await_true(started.exists, "the task runs on a node")
        jobs = slurm.active_jobs()
        # The folder changes meanwhile, so some files of it may be gone.
        subprocess.run(["cp", "-a", str(endpoint.folder), str(tmp_path / "copy")], capture_output=True, check=False)

        done = system.oncue(
            "endpoint", "start", "hpc", "--dir", str(tmp_path / "copy"), "--detach", "--wait", "60s", code=1
        )

        assert "another agent of this endpoint runs" in done.stderr
        assert "oncue endpoint stop hpc" in done.stderr
        assert slurm.active_jobs() == jobs
        release.touch()
        assert task.result(120) == "done"
