"""Traces of an endpoint that asks for blocks and gives them back: simulated, and on Slurm."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from bench.slurm_endpoint import NAME, SlurmEndpoint, is_here, slurm_endpoint
from oncue.endpoint.blocks.scaling import ScalingLimits
from oncue.endpoint.blocks.table import WAITING
from tests.simulation.block_world import BlockWorld

COLUMNS = ("s", "waiting", "running", "blocks_pending", "blocks_running", "workers")
SAMPLE_S, SLURM_SAMPLE_S = 5.0, 0.25
Burst = tuple[float, int, float]  # (when, s; tasks; duration of each, s)
LIMITS = ScalingLimits(max=8, nodes=2, workers=8, walltime_s=3_600.0, idle_s=60.0, pending=4, submits=100)
BURSTS: tuple[Burst, ...] = ((60.0, 600, 30.0), (700.0, 40, 90.0))
SLURM_BURSTS: tuple[Burst, ...] = ((2.0, 60, 1.0), (35.0, 6, 2.0))
YAML = """\
provider: {kind: slurm, partition: debug, exclusive: false, cores_per_node: 2}
blocks: {max: 3, nodes: 1, walltime: 10m, idle: 4s}
workers: {per_node: 2}
network: {address: 127.0.0.1}
limits: {submits: 100/min, pending_blocks: 3}
"""
LIMIT_S = 120.0


def simulated(bursts: tuple[Burst, ...] = BURSTS, until_s: float = 1_200.0, seed: int = 1) -> dict[str, Any]:
    """Return the trace of the real table of blocks, with a simulated scheduler."""
    world = BlockWorld(seed, LIMITS)
    world.scheduler.queue_s = (20.0, 90.0)
    world.boot()
    start = world.clock.now_us
    for at, count, duration in bursts:
        world.clock.at(start + int(at * 1e6), lambda c=count, d=duration: world.add(c, d))  # type: ignore[misc]
    rows: list[list[float]] = []
    while (at_s := (world.clock.now_us - start) / 1e6) < until_s:
        _append(rows, _row(world, at_s))
        world.run_for(SAMPLE_S)
    rows.append([round(at_s, 1), *rows[-1][1:]])
    world.check()
    return {"columns": COLUMNS, "rows": rows, "bursts": bursts, "jobs": len(world.scheduler.all)}


def _append(rows: list[list[float]], row: list[float]) -> None:
    """Append a row if something has changed."""
    if not rows or rows[-1][1:] != row[1:]:
        rows.append(row)


def _row(world: BlockWorld, at_s: float) -> list[float]:
    table = world.table
    if table is None:
        raise AssertionError("the simulated agent is down")
    phases = [table.blocks[i].phase for i in table.live]
    waiting = sum(p in WAITING for p in phases)
    here = [n for n in world.nodes if n.connected]
    running = sum(len(n.tasks) for n in here)
    return [round(at_s, 1), len(world.waiting), running, waiting, len(phases) - waiting, sum(n.workers for n in here)]


def on_slurm(bursts: tuple[Burst, ...] = SLURM_BURSTS) -> dict[str, Any]:
    """Return the trace of an endpoint on Slurm, from its status.json."""
    if not is_here():
        return {"skipped": "needs Slurm: make services"}
    with slurm_endpoint(YAML) as endpoint:
        rows: list[list[float]] = []
        begun, over = time.monotonic(), threading.Event()
        sampler = threading.Thread(target=_sample, args=(endpoint, begun, over, rows))
        sampler.start()
        try:
            with endpoint.system.client() as client:
                for at, count, duration in bursts:
                    time.sleep(max(0.0, begun + at - time.monotonic()))
                    client.gather(client.map(time.sleep, [duration] * count, endpoint=NAME), timeout=LIMIT_S)
            endpoint.await_no_job()
            time.sleep(2.0)  # until the agent knows
        finally:
            over.set()
            sampler.join()
    return {"columns": COLUMNS, "rows": rows, "bursts": bursts}


def _sample(endpoint: SlurmEndpoint, begun: float, over: threading.Event, rows: list[list[float]]) -> None:
    while not over.wait(SLURM_SAMPLE_S):
        try:
            status = endpoint.status()
        except (OSError, json.JSONDecodeError):
            continue
        states = [b["state"] for b in status.get("blocks", [])]
        row = [
            round(time.monotonic() - begun, 2),
            status["queued"],
            status["busy"],
            sum(s in ("asked", "pending") for s in states),
            sum(s in ("running", "draining") for s in states),
            status["ready"],
        ]
        _append(rows, row)
