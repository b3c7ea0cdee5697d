"""Tasks over several nodes on virtual time: `python -m tests.simulation --gangs`.

    Hub ──a task over two nodes──► the first of them; the others get nothing meanwhile

Blocks have two or three nodes. Beside what holds for all tasks (nodes.py), this must:

- A task over several nodes has as many as it asks for, all of one block, and runs on the first.
- Its nodes run nothing else, as far as the agent can know.
- If one of them dies, the task hangs or fails, as MPI does: that is a loss, and no failure of its own.
  Only an agent that was restarted meanwhile does not know of them: it reports a failure.
"""

from __future__ import annotations

from typing import Any

from oncue.endpoint.nodes.gangs import Gangs
from oncue.protocol.records import ERROR, Call, TaskRecord
from oncue.protocol.run_options import Resources, RunOptions
from tests.simulation.nodes import Hub, NodeWorld
from tests.simulation.site import Chunk, Site

NODES, WIDTH = 2, 3  # of a task over several nodes; the room that it takes on each
WANTED_US = 1_000_000  # between two looks at what waits


def size_of(_function: str, options: RunOptions | None) -> tuple[int, int]:
    """Return (whole nodes, or 0; workers' room) that a task takes."""
    nodes = options.resources.nodes if options is not None else 0
    return (nodes, WIDTH) if nodes else (0, 1)


class GangWorld(NodeWorld):
    """One seed. `gangs_class`: what places these tasks."""

    def __init__(self, seed: int, *args: Any, gangs_class: type[Gangs] = Gangs, **given: Any) -> None:
        super().__init__(seed, *args, **given)
        self._gangs_class = gangs_class
        self._unclaimed: set[bytes] = set()  # tasks of the process before, whose nodes are not known
        self._wanted_us = 0
        self.begun: set[tuple[bytes, int]] = set()  # (task, attempt) over several nodes

    # ------------------------------------------------------------ the agent's process

    def configure(self, hub: Hub) -> None:
        pools, agent = hub.pools, hub.agent
        pools._gangs = self._gangs_class(pools._pools.values, pools._remains, pools._note_room)
        pools.size_of = size_of
        self._unclaimed = {i for i, call in agent.unclaimed() if size_of(call.function, call.run)[0]}

        def admits(call: Call) -> bool:
            if self._unclaimed:
                self._unclaimed.intersection_update(i for i, _ in agent.unclaimed())
            return not self._unclaimed and pools.may_start(call.function, call.run)

        agent.admission = admits
        agent.alone = lambda call: bool(size_of(call.function, call.run)[0])

    def on_tick(self, hub: Hub) -> None:
        if self.clock.now_us >= self._wanted_us:
            self._wanted_us = self.clock.now_us + WANTED_US
            hub.pools.want_gangs([key for key in hub.agent.queue.waiting_by_call if size_of(*key)[0]])

    def options_of(self, task: TaskRecord) -> RunOptions | None:
        if task.id[-2] % 4:
            return super().options_of(task)
        return RunOptions(resources=Resources(nodes=NODES))

    # ------------------------------------------------------------ nodes

    def add_block(self) -> None:
        self._names += 1
        block = f"b{self._names}"
        for n in range(self.rng.choice((2, 2, 3))):
            self.add_node(f"{block}.{n}", block)

    def add_node(self, name: str, block: str) -> Site:
        site = super().add_node(name, block)
        site.of_hosts = lambda chunk, status: self._of_hosts(chunk, status)
        site.on_start = lambda task, attempt: self._on_start_at(site, task, attempt)
        return site

    def _of_hosts(self, chunk: Chunk, status: int) -> int | None:
        if all(host in self.nodes for host in chunk.hosts):
            return status
        task = chunk.tasks[chunk.at].id
        return None if task[-3] % 2 and task not in self.blind else ERROR

    def crash_hub(self) -> None:
        if self.hub is not None:
            self.blind.update(self.hub.pools._gangs._running)
        super().crash_hub()

    # ------------------------------------------------------------ what must hold

    def _on_start_at(self, site: Site, task: TaskRecord, attempt: int) -> None:
        self._on_start(task, attempt)
        mine = next(c for c in site.pool.chunks if task in c.tasks)
        if mine.hosts:
            self.begun.add((task.id, attempt))
            assert len(set(mine.hosts)) == NODES, f"{task.id.hex()} has the nodes {mine.hosts}"
            assert mine.hosts[0] == site.name, f"{task.id.hex()} runs on another node than its first"
            assert {h.partition(".")[0] for h in mine.hosts} == {site.block}, f"{mine.hosts} are of several blocks"
        for host in mine.hosts or (site.name,):
            for other, chunk in self._chunks_at(host):
                if chunk is not mine and (mine.hosts or chunk.hosts):
                    running = chunk.tasks[chunk.at].id
                    known = self._is_known(other, running) and self._is_known(site, task.id)
                    assert not known, f"{task.id.hex()} and {running.hex()} share the node {host}"

    def _chunks_at(self, host: str) -> list[tuple[Site, Chunk]]:
        """Return the chunks that run on a node, each with the node that began it."""
        return [
            (site, chunk)
            for site in self.nodes.values()
            for chunk in site.pool.chunks
            if host == site.name or host in chunk.hosts
        ]

    def _is_known(self, site: Site, task_id: bytes) -> bool:
        """Return True if the agent believes that this node has the task."""
        if self.hub is None:
            return False
        pools = self.hub.pools._pools.values()
        return any(p.facts.host == site.name and task_id in p.tasks.held for p in pools)
