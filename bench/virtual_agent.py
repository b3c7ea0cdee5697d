"""An agent with simulated nodes on simulated time: the same run each time.

Agent, PoolSet and their choices are the real ones; what they cost is not measured here, but taken
from measurements: MESSAGE_US for each message between the agent and a node, TASK_US for each task.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from bench import agent as in_process
from bench.simulated_nodes import ServerEnd, SimulatedNodes
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.effects import CancelRunning, RunTasks, SendMessage
from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.loop import execute_in_pool, forward
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.endpoint.nodes.process import VoidFile
from oncue.functions import pack_function

MESSAGE_US, TASK_US = 10, 5  # of the agent's one thread
LATENCY_US = 200  # of the network, each way
NODE_WORKERS = 128
BEAT_US = 5_000_000
START_US = 1_700_000_000_000_000
LIMIT_US = 7 * 86_400_000_000


class VirtualAgent:
    """An agent whose nodes have so many workers in all."""

    def __init__(self, folder: Path, workers: int, task_us: int) -> None:
        self._waited_us = START_US  # and what the thread has worked comes on top
        self._link: SimulatedNodes | None = None
        per_node = min(workers, NODE_WORKERS)
        who = AgentIdentity("ep", "1", "3.11", "host", 1, b"12345678")
        cache = DiskCache(folder / "functions", folder / "blobs")
        self.agent = Agent(
            who, Journal(VoidFile(), b"12345678"), cache, random.Random(1), workers, START_US,
            budget_bytes=1 << 40, adopts=True,
        )  # fmt: skip
        self.link = self._link = SimulatedNodes(workers // per_node, per_node, self.now_us, task_us, LATENCY_US)
        content = DiskContent(self.agent.functions.get, folder / "blobs")
        self.pools = PoolSet(self.link, content, self.agent.claim, self.agent.nodes, START_US, self.now_us)
        self.server = ServerEnd(self.now_us)
        self._beat_us = START_US + BEAT_US

    def now_us(self) -> int:
        link = self._link
        worked_us = MESSAGE_US * link.messages + TASK_US * link.tasks if link is not None else 0
        return self._waited_us + worked_us

    def run(self, tasks: int) -> float:
        """Run so many tasks, which are queued when the nodes join. Return the seconds that they take."""
        packed = pack_function(in_process.noop)
        self.agent.functions.store(packed.id, packed.body)
        while not self.server.welcomed:
            self._turn()
        self.server.enqueue(packed.id, 0, tasks)
        while self.server.readable:
            self._turn()
        begun = self.now_us()
        self.link.join()
        while self.server.done < tasks:
            self._turn()
            self._pass_time()
            if self.now_us() - begun > LIMIT_US:
                raise TimeoutError(f"{tasks - self.server.done} tasks did not end in a week")
        return (self.now_us() - begun) / 1e6

    def _turn(self) -> None:
        """Run a turn, as AgentLoop does."""
        agent = self.agent
        self.pools.tick(self.now_us())
        for parts in self.server.receive():
            agent.on_message(parts, self.now_us())
        self._forward()
        for effect in agent.turn(self.now_us(), self.pools.room(), self.pools.chunk_size):
            match effect:
                case SendMessage():
                    self.server.send(effect.parts)
                case RunTasks() | CancelRunning():
                    execute_in_pool(self.pools, effect)
        if agent.journalled:
            self.pools.acknowledge()
        self._forward()

    def _forward(self) -> None:
        forward(self.agent, self.pools.drain())

    def _pass_time(self) -> None:
        """Go on to when something happens next."""
        if self.link.readable or self.server.readable:
            return
        due = [self.agent.next_wake_us(), self._beat_us]
        due += [at for at in (self.link.next_us, self.pools.next_wake_us) if at is not None]
        now = self.now_us()
        self._waited_us += max(1, min(due) - now)
        if self.now_us() >= self._beat_us:
            self._beat_us = self.now_us() + BEAT_US
            self.link.beat()
            self.server.beat()


def completion_s(tasks: int, workers: int, task_us: int) -> float:
    """Return the seconds from the first dispatch until the server has the last outcome."""
    with tempfile.TemporaryDirectory() as name:
        return round(VirtualAgent(Path(name), workers, task_us).run(tasks), 6)


def curve(kind: str, task_us: int, tasks: dict[int, int]) -> dict[str, Any]:
    """Return the completion times of a kind of task. `tasks`: their number, by that of workers."""
    found = [{"workers": w, "tasks": n, "s": completion_s(n, w, task_us)} for w, n in tasks.items()]
    return {"kind": kind, "task_us": task_us, "points": found}
