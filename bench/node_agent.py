"""An agent whose workers are on nodes, without blocks: `python -m bench.node_agent FOLDER`.

The keys of its blocks are in FOLDER/blocks.json. Nodes are started by whoever measures.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from pathlib import Path

from oncue import curve
from oncue.clocks.process import now_us
from oncue.endpoint import settings as folder_settings
from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.blob_cache import DiskCache
from oncue.endpoint.agent.effects import Connect
from oncue.endpoint.agent.journal import DiskFile, Journal
from oncue.endpoint.agent.socket import AgentSocket
from oncue.endpoint.loop import AgentLoop
from oncue.endpoint.nodes.launch import open_nodes
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.endpoint.options.options import NetworkOptions

BLOCKS = "blocks.json"  # file in the folder: block -> public key


def open_agent(folder: Path) -> tuple[AgentLoop, PoolSet]:
    """Return the loop of an agent in this folder, and its nodes' pools."""
    settings = folder_settings.load(folder)
    identity = AgentIdentity(settings.id, "1", platform.python_version(), "login", os.getpid(), os.urandom(8))
    journal = Journal(DiskFile(folder / "journal"), os.urandom(8))
    cache = DiskCache(folder / "functions", folder / "blobs")
    agent = Agent(identity, journal, cache, random.Random(), 2, now_us(), adopts=True)
    pools, _ = open_nodes(folder, agent, NetworkOptions(address="127.0.0.1"))
    for block, key in json.loads((folder / BLOCKS).read_text()).items():
        pools.allow(block, key.encode(), f"job {block}")
    socket = AgentSocket(curve.load_or_make_keys(folder / "agent.key"))

    def dial(_to: Connect) -> None:
        socket.connect(*folder_settings.resolve_server(settings))

    return AgentLoop(agent, pools, socket, dial, journalled=pools.acknowledge), pools


def main() -> None:
    loop, pools = open_agent(Path(sys.argv[1]))
    loop.stop_on_signals()
    while not loop.stop_why and not loop.agent.refused:
        loop.turn(now_us() + 1_000_000, lambda at: None)
    pools.close(0)


if __name__ == "__main__":
    main()
