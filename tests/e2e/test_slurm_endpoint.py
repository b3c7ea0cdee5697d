"""An endpoint with blocks of a real Slurm, as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from oncue.errors import TaskLost
from tests.e2e.running import PATIENCE_S, System, system_in
from tests.slurm.cluster import Cluster

YAML = """\
provider: {kind: slurm, partition: debug, exclusive: false, cores_per_node: 2}
blocks: {max: 2, nodes: 1, walltime: 10m, idle: 2s}
workers: {per_node: 2}
network: {address: 127.0.0.1}
limits: {submits: 100/min}
"""
TASKS = 200
SLOW_S = 4 * PATIENCE_S  # a job that waits for a node, whose Python starts on a busy machine


def double(n: int) -> int:
    return n * 2


def nap(seconds: float, note: str = "") -> int:
    if note:
        with open(note, "a") as file:
            file.write("ran\n")
    time.sleep(seconds)
    return os.getpid()


class SlurmEndpoint:
    """The endpoint `hpc` in its folder, and its agent as a process."""

    def __init__(self, system: System, slurm: Cluster, yaml: str = YAML) -> None:
        self.system, self.slurm = system, slurm
        self.folder = system.folder / "hpc"
        self.place = ("hpc", "--dir", str(self.folder))
        self._former = slurm.jobs().keys()  # of other tests
        system.oncue("endpoint", "register", *self.place)
        (self.folder / "endpoint.yaml").write_text(yaml)

    def start(self) -> psutil.Process:
        self.system.oncue("endpoint", "start", *self.place, "--detach")
        self.system.await_connected("hpc")
        return psutil.Process(int((self.folder / "lock").read_text()))

    def stop(self) -> None:
        self.system.oncue("endpoint", "stop", *self.place)

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "status.json").read_text()))

    def blocks(self, *states: str) -> list[dict[str, Any]]:
        return [b for b in self.status().get("blocks", []) if b["state"] in states]

    def await_blocks(self, *states: str, count: int = 1) -> list[dict[str, Any]]:
        found = lambda: len(self.blocks(*states)) >= count and self.blocks(*states)  # noqa: E731
        return self.system.await_true(found, f"{count} blocks are {states}", SLOW_S) or []

    def jobs(self) -> set[str]:
        """Return all jobs that were submitted since the test began."""
        return self.slurm.jobs().keys() - self._former

    def await_running(self, note: str, count: int) -> None:
        """Wait until so many tasks have written to `note`, so that none is on its way to a node."""
        path = Path(note)
        self.system.await_true(
            lambda: path.exists() and len(path.read_text().splitlines()) == count, f"{count} tasks run", SLOW_S
        )

    def metrics(self) -> dict[tuple[str, str], float]:
        """Return the series of this endpoint, by name and the third label."""
        text = self.system.http("GET", "/metrics").body.decode()
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        own = [s for s in samples if s.labels.get("endpoint") == "hpc"]
        return {
            (s.name, "".join(v for k, v in s.labels.items() if k not in ("endpoint", "owner"))): s.value for s in own
        }

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()


@contextlib.contextmanager
def slurm_endpoint(folder: Path, slurm: Cluster) -> Iterator[SlurmEndpoint]:
    """Yield an endpoint at a server of its own; its agent is stopped afterwards."""
    with system_in(folder, "--no-endpoint") as system:
        found = SlurmEndpoint(system, slurm)
        try:
            yield found
        finally:
            system.oncue("endpoint", "stop", *found.place, code=None)


@pytest.fixture
def endpoint(tmp_path: Path, slurm: Cluster) -> Iterator[SlurmEndpoint]:
    with slurm_endpoint(tmp_path, slurm) as found:
        yield found


def test_blocks_are_asked_for_by_demand_and_no_job_is_left(endpoint: SlurmEndpoint) -> None:
    endpoint.start()
    assert not endpoint.jobs()

    with endpoint.system.client() as client:
        tasks = client.map(double, range(TASKS), endpoint="hpc")
        found = [t.result(SLOW_S) for t in tasks]
    assert found == [2 * n for n in range(TASKS)]
    jobs = endpoint.jobs()
    assert 1 <= len(jobs) <= 2

    endpoint.system.await_true(lambda: not endpoint.slurm.active_jobs(), "idle blocks are given back", SLOW_S)
    assert len(endpoint.jobs()) == len(jobs)
    endpoint.stop()
    assert not endpoint.slurm.active_jobs()


def test_a_killed_agent_adopts_its_blocks_and_no_task_runs_twice(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(YAML.replace("max: 2", "max: 1"))
    agent = endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        tasks = [client.submit(nap, 4.0, note, endpoint="hpc") for _ in range(5)]
        endpoint.await_running(note, 2)

        agent.kill()
        agent.wait()
        endpoint.start()
        workers = {t.result(SLOW_S) for t in tasks}

    assert len(Path(note).read_text().splitlines()) == len(tasks), "each ran once"
    assert len(endpoint.jobs()) == 1, "no block was doubled"
    assert "adopted" in endpoint.log()
    assert len(workers) <= 2
    endpoint.stop()
    assert not endpoint.slurm.active_jobs()


def test_a_job_that_began_while_the_agent_was_away_is_as_old_as_it_is(endpoint: SlurmEndpoint) -> None:
    slurm = endpoint.slurm
    script = endpoint.folder / "script"  # it has begun
    yaml = YAML.replace("cores_per_node: 2", f'cores_per_node: 2, worker_init: "touch {script}"')
    (endpoint.folder / "endpoint.yaml").write_text(yaml.replace("max: 2", "max: 1").replace("idle: 2s", "idle: 10m"))
    others = [slurm.run("sbatch", "--parsable", "--exclusive", "--wrap", "sleep 1000").strip() for _ in slurm.nodes]
    for other in others:
        slurm.wait_job(other, "RUNNING")
    agent = endpoint.start()
    with endpoint.system.client() as client:
        task = client.submit(double, 1, endpoint="hpc")
        client.flush()
        endpoint.await_blocks("pending")
        agent.kill()
        agent.wait()

        slurm.cancel(*others)
        endpoint.system.await_true(script.exists, "the job's script has begun", SLOW_S)
        time.sleep(3.0)  # it gets older
        endpoint.start()
        assert task.result(SLOW_S) == 2

    (running,) = endpoint.await_blocks("running")
    assert datetime.fromisoformat(running["since"]).timestamp() < script.stat().st_mtime + 2


def test_why_a_task_waits_is_told_and_a_waiting_job_does_not_outlive_the_agent(endpoint: SlurmEndpoint) -> None:
    yaml = YAML.replace("cores_per_node: 2", 'cores_per_node: 2, scheduler_options: "#SBATCH --begin=now+1hour"')
    (endpoint.folder / "endpoint.yaml").write_text(yaml)
    endpoint.start()
    with endpoint.system.client() as client:
        task = client.submit(double, 1, endpoint="hpc")
        client.flush()

        told = endpoint.system.await_true(
            lambda: "BeginTime" in endpoint.status()["waiting"] and endpoint.status(), "the reason is told", SLOW_S
        )
        (job,) = endpoint.slurm.active_jobs()
        words = f"waiting for a block: job {job}, PENDING (BeginTime"
        assert told["waiting"].startswith(words)
        endpoint.system.await_true(lambda: words in client.tasks.get(task.id).why, "the server tells it too")
        info = client.endpoints.get("hpc")
        assert (info.scheduler, info.workers, [b.job for b in info.blocks]) == ("slurm", 0, [job])
        assert "PENDING" in endpoint.system.oncue("endpoints", "show", "hpc").stdout
        found = endpoint.metrics()
        assert found["oncue_endpoint_pending_info", "BeginTime"] == 1
        assert (found["oncue_endpoint_blocks", "pending"], found["oncue_endpoint_nodes", ""]) == (1, 0)
        endpoint.stop()
        assert not endpoint.slurm.active_jobs()
        task.cancel()


def test_a_job_that_dies_at_once_is_submitted_three_times_and_reset_tries_again(endpoint: SlurmEndpoint) -> None:
    yaml = YAML.replace("cores_per_node: 2", 'cores_per_node: 2, worker_init: "echo no such module >&2; exit 7"')
    yaml = yaml.replace("max: 2", "max: 9").replace("limits: {", "limits: {pending_blocks: 9, ")
    (endpoint.folder / "endpoint.yaml").write_text(yaml)
    endpoint.start()
    with endpoint.system.client() as client:
        tasks = client.map(double, range(TASKS), endpoint="hpc")
        client.flush()
        words = str(endpoint.system.await_true(lambda: endpoint.status()["breaker"], "it opens", SLOW_S))

        assert "3 blocks in a row ended before a worker had registered" in words
        assert "exit 7" in words
        assert "no such module" in words
        assert len(endpoint.blocks("ended")) == len(endpoint.status()["blocks"]) == 3
        endpoint.system.await_true(lambda: client.endpoints.get("hpc").breaker, "the server knows it")
        found = endpoint.metrics()
        assert (found["oncue_endpoint_breaker_open", ""], found["oncue_endpoint_pending_info", "breaker"]) == (1, 1)
        (endpoint.folder / "endpoint.yaml").write_text(YAML)
        endpoint.system.oncue("endpoint", "stop", *endpoint.place)
        endpoint.start()
        (endpoint.folder / "reset-blocks").touch()
        assert [t.result(SLOW_S) for t in tasks] == [2 * n for n in range(TASKS)]


def test_blocks_nodes_and_node_hours_are_in_api_and_metrics(endpoint: SlurmEndpoint) -> None:
    yaml = YAML.replace("idle: 2s", "idle: 1h").replace("limits: {", "limits: {node_hours: 50/week, ")
    (endpoint.folder / "endpoint.yaml").write_text(yaml)
    endpoint.start()
    with endpoint.system.client() as client:
        assert client.submit(double, 4, endpoint="hpc").result(SLOW_S) == 8
        known = lambda: (e := client.endpoints.get("hpc")).nodes and e.node_hours and e.idle == 2 and e  # noqa: E731
        info = endpoint.system.await_true(known, "the agent reports", SLOW_S)
        found = endpoint.metrics()
        listed = next(e for e in client.endpoints.list() if e.name == "hpc")

    (block,) = info.blocks
    assert block.ends is not None
    assert block.since is not None
    assert (block.ends - block.since).total_seconds() == 600
    assert info.cores >= 1
    assert 0 < info.memory_used_bytes < info.memory_bytes
    assert (info.node_hours_limit, info.node_hours_period_s, info.breaker) == (50, 7 * 86_400, "")
    assert (listed.nodes, listed.blocks[0].job) == (1, block.job)
    assert (found["oncue_endpoint_blocks", "running"], found["oncue_endpoint_nodes", ""]) == (1, 1)
    assert (found["oncue_endpoint_workers", "idle"], found["oncue_endpoint_breaker_open", ""]) == (2, 0)
    assert (found["oncue_endpoint_node_hours_limit", ""], found["oncue_endpoint_submits_failed_total", ""]) == (50, 0)
    assert 0 < found["oncue_endpoint_node_hours", ""] < 50


def test_a_block_that_somebody_cancels_costs_no_task(endpoint: SlurmEndpoint) -> None:
    endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        tasks = [client.submit(nap, 3.0, note, endpoint="hpc") for _ in range(6)]
        endpoint.system.await_true(lambda: Path(note).exists(), "tasks run", SLOW_S)

        endpoint.slurm.cancel(*endpoint.slurm.active_jobs())

        assert all(t.result(SLOW_S) for t in tasks)
    assert len(endpoint.jobs()) >= 2


def test_a_submission_whose_answer_is_lost_is_adopted(endpoint: SlurmEndpoint) -> None:
    yaml = YAML.replace("cores_per_node: 2", "cores_per_node: 2, command_timeout: 2s").replace("max: 2", "max: 1")
    (endpoint.folder / "endpoint.yaml").write_text(yaml)
    with endpoint.slurm.faults.answer_lost("sbatch"):
        endpoint.start()
        with endpoint.system.client() as client:
            assert client.submit(double, 4, endpoint="hpc").result(SLOW_S) == 8

    assert len(endpoint.jobs()) == 1
    (block,) = endpoint.await_blocks("running", "draining", "ended")
    endpoint.system.await_true(lambda: endpoint.blocks("running", "draining", "ended")[0]["job"], f"{block}: its job")
    endpoint.stop()
    assert not endpoint.slurm.active_jobs()


def test_a_scheduler_that_is_away_stops_nothing_that_runs(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(YAML.replace("idle: 2s", "idle: 1m"))
    endpoint.start()
    with endpoint.system.client() as client:
        assert client.submit(double, 1, endpoint="hpc").result(SLOW_S) == 2
        endpoint.slurm.stop_controller()
        try:
            assert client.submit(double, 2, endpoint="hpc").result(SLOW_S) == 4
            said = "next try in"
            endpoint.system.await_true(lambda: said in endpoint.status()["scheduler"], "the status says so", SLOW_S)
        finally:
            endpoint.slurm.start_controller()
        assert client.submit(double, 3, endpoint="hpc").result(SLOW_S) == 6
    endpoint.stop()
    assert not endpoint.slurm.active_jobs()


def test_a_restart_leaves_blocks_and_tasks_alone(endpoint: SlurmEndpoint) -> None:
    agent = endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        tasks = [client.submit(nap, 6.0, note, endpoint="hpc") for _ in range(2)]
        endpoint.await_running(note, 2)
        jobs = endpoint.jobs()

        endpoint.system.oncue("endpoint", "restart", *endpoint.place)

        assert all(t.result(SLOW_S) for t in tasks)
    assert not agent.is_running()
    assert len(Path(note).read_text().splitlines()) == len(tasks), "each ran once"
    assert endpoint.jobs() == jobs


def test_a_node_that_vanishes_costs_what_ran_there_and_says_so(endpoint: SlurmEndpoint) -> None:
    (endpoint.folder / "endpoint.yaml").write_text(YAML.replace("max: 2", "max: 1"))
    endpoint.start()
    note = str(endpoint.folder / "note")
    with endpoint.system.client() as client:
        task = client.submit(nap, 600.0, note, endpoint="hpc")
        endpoint.system.await_true(lambda: Path(note).exists(), "it runs", SLOW_S)
        (job,) = endpoint.slurm.active_jobs()
        node = endpoint.slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()

        endpoint.slurm.kill_node(node)

        with pytest.raises(TaskLost, match=f"job {job}"):
            task.result(SLOW_S)
        assert client.submit(double, 21, endpoint="hpc").result(SLOW_S) == 42, "on another node"
