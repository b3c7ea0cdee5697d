"""All nodes of an agent, when the agent's process is stopped for a while."""

from __future__ import annotations

import random
from pathlib import Path

from bench.simulated_nodes import SimulatedNodes
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.nodes.content import DiskContent
from oncue.endpoint.nodes.node_pool import SILENT_US
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.endpoint.nodes.process import VoidFile

NODES = 600  # more than are read at once


class Site:
    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000_000
        who = AgentIdentity("ep", "1", "3.11", "host", 1, b"12345678")
        cache = DiskCache(folder / "functions", folder / "blobs")
        agent = Agent(who, Journal(VoidFile(), b"12345678"), cache, random.Random(1), 1, self.now, adopts=True)
        self.link = SimulatedNodes(NODES, 1, lambda: self.now)
        content = DiskContent(agent.functions.get, folder / "blobs")
        self.pools = PoolSet(self.link, content, agent.claim, agent.nodes, self.now, lambda: self.now)
        self.link.join()
        self.pass_time(3)

    def pass_time(self, seconds: int) -> None:
        """Let time pass, with the ticks of the agent's loop."""
        for _ in range(10 * seconds):
            self.now += 100_000
            self.pools.tick(self.now)


def test_an_agent_that_was_stopped_for_long_loses_no_node_that_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.pools.size == NODES

    site.now += 2 * SILENT_US
    site.pools.tick(site.now)  # its socket has not got yet what has arrived
    site.link.beat()
    site.pass_time(5)

    assert site.pools.size == NODES


def test_nodes_that_ended_while_the_agent_was_stopped_are_lost(tmp_path: Path) -> None:
    site = Site(tmp_path)

    site.now += 2 * SILENT_US
    site.pass_time(5)

    assert not site.pools.size
