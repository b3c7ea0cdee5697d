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
from pathlib import Path
from typing import Any

import psutil

from bench import agent as in_process
from bench import peers
from bench.node_agent import BLOCKS
from oncue import curve
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.effects import RunTasks, SendMessage
from oncue.endpoint.agent.journal import DiskFile, Journal
from oncue.endpoint.nodes.addresses import read_addresses
from oncue.endpoint.nodes.block_secret import SECRET
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.launch import ADDRESS_FILE, NodeLaunch
from oncue.endpoint.nodes.listener import Received
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.functions import pack_function
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import pack_args
from oncue.protocol.records import OK, VERSION, Call, Ended, TaskRecord

WORKERS = 2


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = in_process.Server(folder, WORKERS)
        keys = curve.make_keys()
        (folder / BLOCKS).write_text(json.dumps({"b1": keys.public.decode()}))
        quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL}
        processes = [subprocess.Popen([sys.executable, "-m", "bench.node_agent", name], **quiet)]
        try:
            while (found := read_addresses(folder / ADDRESS_FILE)) is None:
                time.sleep(0.01)
            words = shlex.split(NodeLaunch(found, folder / ADDRESS_FILE).command("b1", WORKERS))
            processes.append(subprocess.Popen(words, env={**os.environ, SECRET: keys.secret.decode()}, **quiet))
            return in_process.measure(server, processes[0].pid, tasks, singles)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(20)
            server.close()


class SimulatedNodes:
    """A NodeLink whose nodes end each task at once, and say so in the next turn."""

    readable = False

    def __init__(self, nodes: int, workers: int) -> None:
        self._numbers = dict.fromkeys(range(nodes), 2)
        self._workers = workers
        self._seq = 0
        self._answers: list[tuple[bytes, list[bytes]]] = []

    def hello(self, node: int) -> None:
        """Let a node join."""
        route = node.to_bytes(4, "big")
        hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", f"n{node}", 1, route * 2, b"", self._workers, 0)
        self._to_agent(route, 0, hello)
        self._to_agent(route, 1, bridge.Credit(1 << 40))

    def _to_agent(self, route: bytes, number: int, message: bridge.FromAgent, body: bytes = b"") -> None:
        head = bridge.encode(bridge.AgentEnvelope(1, number, 0, message))
        self._answers.append((route, [head, body] if body else [head]))

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        envelope, body = bridge.decode_from_bridge(parts)
        message = envelope.message
        if isinstance(message, bridge.Dispatch):
            node, now = int.from_bytes(route, "big"), time.time_ns() // 1000
            number = self._numbers[node]
            self._numbers[node] += 1
            self._seq += 1
            value = b"m\xc0"
            ends = [
                Ended(t.id, message.attempt, OK, now - 2_000_000, now, value) for t in decode(list[TaskRecord], body)
            ]
            results = bridge.Results(self._seq, len(ends), message.call, 1, 1 << 40)
            self._to_agent(route, number, results, encode(ends))
        return True

    def filenos(self) -> list[int]:
        return []

    def receive(self, on_message: Received) -> None:
        answers, self._answers = self._answers, []
        for route, parts in answers:
            on_message("b1", route, parts)

    def allow(self, block: str, public_key: bytes) -> None: ...

    def forbid(self, block: str, public_key: bytes) -> None: ...

    def close(self) -> None: ...


def crowd(tasks: int = 1_000_000, nodes: int = 1_000, workers: int = 100) -> dict[str, Any]:
    """Return {tasks_per_s, cpu_us (a task, nodes included), mb_queued, mb_half, mb_end}.

    All tasks are queued in the agent before the first one runs. They take long, so each is sent to
    its worker by itself.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        who = AgentIdentity("ep", "1", "3.11", "host", 1, b"12345678")
        cache = DiskCache(folder / "functions", folder / "blobs")
        journal = Journal(DiskFile(folder / "journal"), b"12345678")
        now = time.time_ns() // 1000
        agent = Agent(who, journal, cache, random.Random(1), nodes * workers, now, budget_bytes=1 << 40, adopts=True)
        link = SimulatedNodes(nodes, workers)
        content = DiskContent(agent.functions.get, folder / "blobs")
        pools = PoolSet(link, content, agent.claim, agent.nodes, now)
        for node in range(nodes):
            link.hello(node)
        return _drive(agent, pools, link, tasks)


def _drive(agent: Agent, pools: PoolSet, link: SimulatedNodes, tasks: int) -> dict[str, Any]:
    packed = pack_function(in_process.noop)
    agent.functions.store(packed.id, packed.body)
    server = ServerEnd(agent)
    call = encode(Call(VERSION, packed.id, "ep", "bench", "noop"))
    for first in range(0, tasks, 256):
        made = [TaskRecord(i.to_bytes(16, "big"), pack_args((), {})) for i in range(first, min(first + 256, tasks))]
        server.send(bridge.Dispatch(call, 1, len(made), 1), encode(made))
        server.turn(None)
    me = psutil.Process()
    sizes = {"mb_queued": round(me.memory_info().rss / 2**20)}
    began, cpu, half = time.perf_counter(), time.process_time(), tasks // 2
    while server.done < tasks:
        link.receive(pools.on_message)
        events = pools.drain()
        for _, _, ends in events.ended:
            agent.on_results(ends)
        server.turn(pools)
        if server.done >= half and "mb_half" not in sizes:
            sizes["mb_half"] = round(me.memory_info().rss / 2**20)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    sizes["mb_end"] = round(me.memory_info().rss / 2**20)
    return {"tasks_per_s": round(tasks / took), "cpu_us": round(cpu / tasks * 1e6, 1)} | sizes


class ServerEnd:
    """The least that an agent needs of its server; all acks come at once."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._session = self._number = 0
        self.done = 0
        effects = agent.turn(time.time_ns() // 1000, 0, lambda function: 1)
        self._read(effects)

    def send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        head = bridge.encode(bridge.BridgeEnvelope(self._session, self._number, 1, message))
        self._number += 1
        self._agent.on_message([head, body], time.time_ns() // 1000)

    def turn(self, pools: PoolSet | None) -> None:
        """Run a turn of the agent, and answer what it sends. No task begins without `pools`."""
        now = time.time_ns() // 1000
        effects = self._agent.turn(now, pools.room() if pools else 0, lambda function: 1)
        for effect in effects:
            if isinstance(effect, RunTasks) and pools:
                pools.run(effect.function, effect.body, effect.timeout_ms, effect.attempt, effect.tasks)
        if pools:
            pools.acknowledge()
        self._read(effects)

    def _read(self, effects: list[Any]) -> None:
        last = -1
        for effect in effects:
            if isinstance(effect, SendMessage):
                envelope, _ = bridge.decode_from_agent(effect.parts)
                if isinstance(envelope.message, bridge.Hello):
                    self._session, self._number = envelope.session, 0
                    self.send(bridge.Welcome(1, "bench", "1", by_function=True))
                elif isinstance(envelope.message, bridge.Results):
                    self.done += envelope.message.count
                    last = envelope.message.seq
        if last >= 0:
            self.send(bridge.Ack(last))


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv, beside_htex=True), indent=2))
