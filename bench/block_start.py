"""Measure how long a block takes to begin its first task: `python -m bench.block_start`.

    Slurm of its own ──sbatch──► job's script ──srun──► process of the node ──► worker ──► first line of the task
                                 └─────────────────────── what is measured ──────────────────────┘

Server, agent, Slurm and node share this machine's cores. Each round has a block of its own: its job
starts from nothing, and ends before the next task is submitted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.running import System, system_in
from tests.slurm.cluster import Cluster

WORKERS, PATIENCE_S = 2, 20.0
YAML = """\
provider:
  kind: slurm
  partition: debug
  exclusive: false
  cores_per_node: 2
  worker_init: 'echo "$EPOCHREALTIME" >> {starts}'
blocks: {{max: 1, nodes: 1, walltime: 10m, idle: 1s}}
workers: {{per_node: {workers}}}
network: {{address: 127.0.0.1}}
limits: {{submits: 100/min}}
"""


def first_line() -> float:
    import time

    return time.time()


def run(rounds: int = 20) -> dict[str, Any]:
    """Return {p50_s, p90_s, min_s, max_s: job's script until task; whole_p50_s: call until task}."""
    if shutil.which("slurmctld") is None and not Path("/usr/sbin/slurmctld").exists():
        return {"skipped": "needs Slurm: make services"}
    with tempfile.TemporaryDirectory(prefix="oncue-block-start-") as name:
        folder = Path(name)
        cluster = Cluster(folder / "slurm").start()
        os.environ.update({k: cluster.environ[k] for k in ("SLURM_CONF", "PATH")})
        try:
            with system_in(folder, "--no-endpoint") as system:
                found = _rounds(system, cluster, folder, rounds)
        finally:
            cluster.stop()
    return found


def _rounds(system: System, cluster: Cluster, folder: Path, rounds: int) -> dict[str, Any]:
    starts, place = folder / "starts", ("hpc", "--dir", str(folder / "hpc"))
    system.oncue("endpoint", "register", *place)
    (folder / "hpc" / "endpoint.yaml").write_text(YAML.format(starts=starts, workers=WORKERS))
    system.oncue("endpoint", "start", *place, "--detach")
    took: list[float] = []
    whole: list[float] = []
    try:
        system.await_connected("hpc")
        with system.client() as client:
            for number in range(rounds):
                asked = time.time()
                began = client.submit(first_line, endpoint="hpc").result(PATIENCE_S)
                script = [float(line) for line in starts.read_text().splitlines()]
                if len(script) != number + 1:
                    raise AssertionError(f"{len(script)} jobs for {number + 1} tasks")
                took.append(began - script[-1])
                whole.append(began - asked)
                system.await_true(lambda: not cluster.active_jobs(), "the block is given back", PATIENCE_S)
    except TimeoutError:
        print((folder / "hpc" / "agent.log").read_text(), (folder / "hpc" / "status.json").read_text(), cluster.jobs())
        raise
    finally:
        system.oncue("endpoint", "stop", *place, "--cancel", code=None)
    tenths = statistics.quantiles(took, n=10)
    return {
        "rounds": rounds,
        "p50_s": round(statistics.median(took), 2),
        "p90_s": round(tenths[-1], 2),
        "min_s": round(min(took), 2),
        "max_s": round(max(took), 2),
        "whole_p50_s": round(statistics.median(whole), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.block_start")
    parser.add_argument("--rounds", type=int, default=20)
    print(json.dumps(run(parser.parse_args().rounds), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
