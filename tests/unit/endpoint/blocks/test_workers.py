"""What many nodes cost their agent, with the real table, pools and agent."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

from bench.simulated_nodes import SimulatedNodes
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.blocks.scaling import ScalingLimits
from oncue.endpoint.blocks.task_sizes import TaskSizes
from oncue.endpoint.blocks.workers import BlockWorkers
from oncue.endpoint.nodes.addresses import AgentAddresses
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.launch import NodeLaunch
from oncue.endpoint.nodes.pool_set import NodeInfo, PoolSet
from oncue.endpoint.nodes.process import VoidFile
from oncue.endpoint.options.apply import NodeResources
from oncue.endpoint.providers.job_events import JobEvent, Submitted
from oncue.endpoint.providers.job_thread import JobThread
from oncue.endpoint.providers.jobs import JobRequest
from oncue.protocol import bridge

NODES, START_US = 200, 1_000_000_000


class Jobs:
    """A JobThread whose scheduler accepts all jobs at once."""

    fd = -1

    def __init__(self) -> None:
        self.events: list[JobEvent] = []

    def submit(self, request: JobRequest) -> None:
        self.events.append(Submitted(request.mark, str(len(self.events) + 1)))

    def drain(self) -> list[JobEvent]:
        events, self.events = self.events, []
        return events

    def poll(self, ids: tuple[str, ...]) -> None: ...

    def trouble(self) -> str:
        return ""


class CountingPools(PoolSet):
    """Counts how often all nodes are looked at."""

    looks = 0

    def nodes(self) -> list[NodeInfo]:
        self.looks += 1
        return super().nodes()


class Site:
    """An agent with a block of many nodes, on time that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = START_US
        journal = Journal(VoidFile(), b"12345678")
        who = AgentIdentity("ep", "1", "3.11", "host", 1, b"12345678")
        cache = DiskCache(folder / "functions", folder / "blobs")
        agent = Agent(who, journal, cache, random.Random(1), 1, self.now, adopts=True)
        agent.session.on_welcome()
        self.link = SimulatedNodes(NODES, 1, lambda: self.now)
        content = DiskContent(agent.functions.get, folder / "blobs")
        self.pools = CountingPools(self.link, content, agent.claim, agent.nodes, self.now, lambda: self.now)
        limits = ScalingLimits(min=1, nodes=NODES, workers=1)
        launch, self.jobs = NodeLaunch(AgentAddresses(("tcp://h:1",), "k" * 40), folder / "nodes.json"), Jobs()
        sizes = TaskSizes(limits, NodeResources(1, 0, 0), NodeResources(0, 0, 0), agent.functions.options)
        self.workers = BlockWorkers(
            folder, "ep", agent, journal, limits, cast(JobThread, self.jobs), self.pools, launch, {}, "slurm", 1, sizes
        )
        self.check()
        self.workers.on_readable()
        self.check()
        ((self.block, _),) = self.workers.table.live.items()

    def check(self) -> None:
        self.workers.check(self.now)

    def join(self, node: int) -> None:
        """Let one node of the block join."""
        route = node.to_bytes(4, "big")
        hello = bridge.Hello(bridge.PROTOCOL, "1", "3.11", f"n{node}", node, route * 2, b"", 1, 0)
        messages: list[Any] = [hello, bridge.Credit(1)]
        for number, message in enumerate(messages):
            envelope = bridge.AgentEnvelope(1, number, 0, message)
            self.pools.on_message(self.block, route, [bridge.encode(envelope)])


def test_many_nodes_that_join_are_not_looked_at_for_each_of_them(tmp_path: Path) -> None:
    site = Site(tmp_path)
    before = site.pools.looks

    site.join(0)
    site.check()
    assert site.workers.table.live[site.block].nodes == {"n0:0"}, "the first one counts at once"
    for node in range(1, NODES):
        site.now += 1_000
        site.join(node)
        site.check()

    assert site.pools.looks - before < 30
    assert site.workers.due_us() <= site.now + 200_000, "the rest are looked at soon"
    site.now = site.workers.due_us()
    site.check()
    assert len(site.workers.table.live[site.block].nodes) == NODES
