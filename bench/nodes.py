"""Measure an agent whose workers are on a node: `python -m bench.nodes`.

    server of bench.agent ──► agent ══ CURVE, loopback ══► process of a node ──► 2 workers

Beside it, in the same run: the same agent with the same workers in its own process, and Parsl's
HighThroughputExecutor with 2 workers, if it can be installed. And a crowd: the real agent and the
pools of 1,000 simulated nodes with 100 workers each, in one process.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench import agent as in_process
from bench import peers
from bench.node_agent import BLOCKS
from bench.simulated_nodes import ServerEnd, SimulatedNodes
from oncue import curve
from oncue.clocks.process import now_us
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.journal import DiskFile, Journal
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.nodes.addresses import read_addresses
from oncue.endpoint.nodes.block_secret import SECRET
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.launch import ADDRESS_FILE, NodeLaunch
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.functions import pack_function

WORKERS = 2
TASK_US = 5_000_000  # of the crowd


def run(quick: bool = False, *, beside_htex: bool = False) -> dict[str, Any]:
    """Return figures of both agents, of HTEX if asked for, and of the crowd."""
    tasks = 50_000 if quick else 200_000
    alone = in_process.run(tasks, WORKERS, 200)
    node = on_a_node(tasks, singles=200)
    found: dict[str, Any] = {
        "tasks_per_s": node["tasks_per_s"],
        "p50_ms": node["p50_ms"],
        "agent_cpu_us": node["agent_cpu_us"],
        "in_process_tasks_per_s": alone["tasks_per_s"],
        "in_process_p50_ms": alone["p50_ms"],
        "of_in_process": round(node["tasks_per_s"] / alone["tasks_per_s"], 2),
    }
    if beside_htex:
        htex = peers.run_one("Parsl HTEX", 1_000 if quick else 5_000)
        found["htex_tasks_per_s"] = htex.get("tasks_per_s", htex.get("skipped"))
        if "tasks_per_s" in htex:
            found["times_htex"] = round(node["tasks_per_s"] / htex["tasks_per_s"])
    return found | {f"crowd_{k}": v for k, v in (crowd(100_000) if quick else crowd()).items()}


def on_a_node(tasks: int, singles: int) -> dict[str, Any]:
    """Return the figures of bench.agent for an agent with one node."""
    with agent_with_node(WORKERS) as (server, pid):
        return in_process.measure(server, pid, tasks, singles)


@contextmanager
def agent_with_node(
    workers: int, function: Callable[[], None] = in_process.noop
) -> Iterator[tuple[in_process.Server, int]]:
    """Start an agent and one node of it. Yield the server of tasks of `function`, and the agent's pid."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = in_process.Server(folder, workers, function)
        keys = curve.make_keys()
        (folder / BLOCKS).write_text(json.dumps({"b1": keys.public.decode()}))
        quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL}
        processes = [subprocess.Popen([sys.executable, "-m", "bench.node_agent", name], **quiet)]
        try:
            while (found := read_addresses(folder / ADDRESS_FILE)) is None:
                time.sleep(0.01)
            words = shlex.split(NodeLaunch(found, folder / ADDRESS_FILE).command("b1", workers))
            processes.append(subprocess.Popen(words, env={**os.environ, SECRET: keys.secret.decode()}, **quiet))
            yield server, processes[0].pid
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(20)
            server.close()


def crowd(tasks: int = 1_000_000, nodes: int = 1_000, workers: int = 100) -> dict[str, Any]:
    """Return {tasks_per_s, cpu_us (a task, nodes included), mb_queued, mb_10, mb_50, mb_100, growth}.

    All tasks are queued in the agent before the first node joins. They take long, so each is sent
    to its worker by itself, and all workers are busy. mb_10: memory when a tenth has ended. growth:
    what it is at the end, compared with that.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        who = AgentIdentity("ep", "1", "3.11", "host", 1, b"12345678")
        cache = DiskCache(folder / "functions", folder / "blobs")
        journal = Journal(DiskFile(folder / "journal"), b"12345678")
        agent = Agent(
            who, journal, cache, random.Random(1), nodes * workers, now_us(), budget_bytes=1 << 40, adopts=True
        )
        link = SimulatedNodes(nodes, workers, now_us, task_us=TASK_US)
        pools = PoolSet(link, DiskContent(agent.functions.get, folder / "blobs"), agent.claim, agent.nodes, now_us())
        server = ServerEnd(now_us)
        loop = AgentLoop(agent, pools, server, lambda to: None, journalled=pools.acknowledge)
        packed = pack_function(in_process.noop)
        agent.functions.store(packed.id, packed.body)
        _turn_until(loop, server, lambda: server.welcomed)
        step = max(1, tasks // 20)
        for first in range(0, tasks, step):
            server.enqueue(packed.id, first, min(step, tasks - first))
            _turn_until(loop, server, lambda: not server.readable)
        return _drained(loop, link, server, tasks)


def _drained(loop: AgentLoop, link: SimulatedNodes, server: ServerEnd, tasks: int) -> dict[str, Any]:
    found: dict[str, Any] = {"tasks": tasks, "mb_queued": _rss_mb()}
    link.join()
    began, cpu = time.perf_counter(), time.process_time()
    for percent in (10, 50, 100):
        goal = tasks * percent // 100
        _turn_until(loop, server, partial(_has_done, server, goal))
        found[f"mb_{percent}"] = _rss_mb()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    found |= {"tasks_per_s": round(tasks / took), "cpu_us": round(cpu / tasks * 1e6, 1)}
    return found | {"growth": round(found["mb_100"] / found["mb_10"], 2)}


def _has_done(server: ServerEnd, tasks: int) -> bool:
    return server.done >= tasks


def _turn_until(loop: AgentLoop, server: ServerEnd, reached: Callable[[], bool]) -> None:
    while not reached():
        loop.turn(now_us() + 1_000_000, lambda at: server.beat() if at % 5_000_000 < 100_000 else None)


def _rss_mb() -> int:
    return round(int(psutil.Process().memory_info().rss) / 2**20)


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv, beside_htex=True), indent=2))
