"""An endpoint with blocks of a real Kubernetes, as a user runs it. Optional: `make kubernetes`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from tests.e2e.running import PATIENCE_S, System, system_in
from tests.kubernetes.cluster import Cluster

YAML = """\
provider: {{kind: kubernetes, image: none, cores_per_node: 1, python: {python}}}
blocks: {{max: 2, nodes: 1, walltime: 10m, idle: 2s}}
workers: {{per_node: 2}}
network: {{address: 127.0.0.1}}
limits: {{submits: 100/min}}
"""
SLOW_S = 4 * PATIENCE_S
TASKS = 200


def double(n: int) -> int:
    return n * 2


def wait_for(flag: str) -> str:
    while not Path(flag).exists():
        time.sleep(0.05)
    return "done"


def agent(system: System) -> psutil.Process:
    """Start the agent of the endpoint `kube` in the background."""
    system.oncue("endpoint", "start", "kube", "--dir", str(system.folder / "kube"), "--detach")
    system.await_connected("kube")
    return psutil.Process(int((system.folder / "kube" / "lock").read_text()))


def test_blocks_come_and_go_with_the_work_and_are_adopted(tmp_path: Path, kubernetes: Cluster) -> None:
    flag = tmp_path / "flag"
    with system_in(tmp_path, "--no-endpoint") as system:
        place = ("kube", "--dir", str(system.folder / "kube"))
        system.oncue("endpoint", "register", *place)
        (system.folder / "kube" / "endpoint.yaml").write_text(YAML.format(python=json.dumps(sys.executable)))
        process = agent(system)
        assert not kubernetes.active_jobs()
        try:
            with system.client() as client:
                found = [t.result(SLOW_S) for t in client.map(double, range(TASKS), endpoint="kube")]
                assert found == [2 * n for n in range(TASKS)]
                system.await_true(lambda: not kubernetes.active_jobs(), "idle blocks are given back", SLOW_S)

                task = client.submit(wait_for, str(flag), endpoint="kube")
                system.await_true(lambda: task.status() == "running", "the task runs", SLOW_S)
                jobs = kubernetes.active_jobs()
                process.kill()
                process.wait(SLOW_S)
                agent(system)
                flag.touch()
                assert task.result(SLOW_S) == "done"
                assert kubernetes.active_jobs() <= jobs, "the former agent's Job was adopted"
        finally:
            system.oncue("endpoint", "stop", *place)
        assert not kubernetes.active_jobs()
        assert not kubernetes.items("secrets")
