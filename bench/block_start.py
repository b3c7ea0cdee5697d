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
import statistics
import sys
import time
from typing import Any

from bench.slurm_endpoint import NAME, PATIENCE_S, SlurmEndpoint, is_here, slurm_endpoint

YAML = """\
provider:
  kind: slurm
  partition: debug
  exclusive: false
  cores_per_node: 2
  worker_init: 'echo "$EPOCHREALTIME" >> {folder}/starts'
blocks: {max: 1, nodes: 1, walltime: 10m, idle: 1s}
workers: {per_node: 2}
network: {address: 127.0.0.1}
limits: {submits: 100/min}
"""


def first_line() -> float:
    import time

    return time.time()


def run(rounds: int = 20) -> dict[str, Any]:
    """Return {p50_s, p90_s, min_s, max_s: job's script until task; whole_p50_s: call until task}."""
    if not is_here():
        return {"skipped": "needs Slurm: make services"}
    with slurm_endpoint(YAML) as endpoint:
        took, whole = _rounds(endpoint, rounds)
    return {
        "rounds": rounds,
        "p50_s": round(statistics.median(took), 2),
        "p90_s": round(statistics.quantiles(took, n=10)[-1], 2),
        "min_s": round(min(took), 2),
        "max_s": round(max(took), 2),
        "whole_p50_s": round(statistics.median(whole), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _rounds(endpoint: SlurmEndpoint, rounds: int) -> tuple[list[float], list[float]]:
    starts = endpoint.system.folder / "starts"
    took: list[float] = []
    whole: list[float] = []
    with endpoint.system.client() as client:
        for number in range(rounds):
            asked = time.time()
            began = client.submit(first_line, endpoint=NAME).result(PATIENCE_S)
            scripts = [float(line) for line in starts.read_text().splitlines()]
            if len(scripts) != number + 1:
                raise AssertionError(f"{len(scripts)} jobs for {number + 1} tasks")
            took.append(began - scripts[-1])
            whole.append(began - asked)
            endpoint.await_no_job()
    return took, whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.block_start")
    parser.add_argument("--rounds", type=int, default=20)
    print(json.dumps(run(parser.parse_args().rounds), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
