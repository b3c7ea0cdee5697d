"""Workers of all nodes as one WorkerPool (pool/base.py). Sans-IO but for its link.

    listener ──messages──► PoolSet ──by (block, boot)──► NodePool, NodePool ...
    agent ──run──► the node with most room

Per turn it costs as much as there is to do, not as there are nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Set

from oncue.clocks.process import now_us
from oncue.endpoint.agent.known_nodes import KnownNodes, NodeKey
from oncue.endpoint.agent.unclaimed_tasks import ClaimedTasks
from oncue.endpoint.blocks.durations import Durations
from oncue.endpoint.nodes.content import NodeContent
from oncue.endpoint.nodes.gangs import Gangs, key_of
from oncue.endpoint.nodes.key_nodes import KeyNodes
from oncue.endpoint.nodes.listener import NodeLink
from oncue.endpoint.nodes.node_info import NodeChange, NodeInfo
from oncue.endpoint.nodes.node_pool import NodePool
from oncue.endpoint.nodes.node_rooms import NodeRooms
from oncue.endpoint.pool.base import PoolEvents
from oncue.endpoint.pool.chunk_size import ChunkSizer
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.records import TaskRecord
from oncue.protocol.run_options import Resources, RunOptions, affinity_of
from oncue.text.log_lines import LineLimiter

log = logging.getLogger("oncue.agent")
TICK_US = 100_000
STOPPED_US = 2_000_000  # without a tick; and then until what had arrived can surely be read
MOST_NODES = 100_000


class PoolSet:
    """Pools of nodes, as their blocks come and go.

    `claim` returns the tasks that the agent gave to a node before its restart. `known` records
    nodes. `epoch` must be higher than those of earlier processes of this agent.
    """

    def __init__(
        self,
        link: NodeLink,
        content: NodeContent,
        claim: Callable[[Iterable[tuple[bytes, int]]], list[ClaimedTasks]],
        known: KnownNodes,
        epoch: int,
        clock: Callable[[], int] = now_us,
        pool_class: type[NodePool] = NodePool,
    ) -> None:
        self._clock, self._pool_class = clock, pool_class
        self.content, self.claim, self.sizer = content, claim, ChunkSizer()
        self._link, self._epoch = link, epoch
        self._next_tick_us = 0
        self._read_us = 0  # when all that the nodes had sent was read last
        self._ticked_us = self._resumed_us = 0  # this process was stopped before, or had no time
        self.now_us = 0
        self._known, self.told = known, known.told
        self._pools: dict[NodeKey, NodePool] = {}
        self._by_route: dict[tuple[str, bytes], NodeKey] = {}  # by (block, route)
        self._routes: dict[NodeKey, bytes] = {}
        self._left: list[NodeKey] = []  # the journal lacks ends of their tasks
        self._keys: dict[str, bytes] = {}  # public ones, by block
        self._jobs: dict[str, str] = {}
        self._draining: set[str] = set()  # blocks
        self._ends_us: dict[str, int] = {}  # of blocks that have a walltime
        #: Returns how long a task of this function and these options needs; 0: not known.
        self.need_us: Callable[[str, RunOptions | None], int] = lambda function, options: 0
        #: Returns (whole nodes, or 0; workers' room) that such a task takes.
        self.size_of: Callable[[str, RunOptions | None], tuple[int, int]] = lambda function, options: (0, 1)
        self.durations = Durations()
        self.block_misfit: Callable[[Resources], str] = lambda resources: ""
        self._key_nodes = KeyNodes()  # of affinity keys
        self._rooms: NodeRooms[NodePool] = NodeRooms()
        self._gangs = Gangs(self._pools.values, self._remains, self._note_room)
        self._dirty: dict[str, NodePool] = {}  # have events, maybe
        self._unacked: dict[str, NodePool] = {}
        self._doubted: dict[str, NodePool] = {}  # have a result that is not drained yet
        self._joined: set[str] = set()
        self._changes: list[NodeChange] = []
        self._back: list[list[TaskRecord]] = []  # for which there was no room
        self._limited = LineLimiter(log)

    # ------------------------------------------------------------ messages

    def on_message(self, block: str, route: bytes, parts: list[bytes]) -> None:
        """Apply a message of a node of this block."""
        try:
            envelope, body = bridge.decode_from_agent(parts)
        except Undecodable as e:
            return self._on_odd(block, route, e.message)
        if isinstance(envelope.message, bridge.Hello):
            key = self._on_hello(block, route, envelope.message)
        else:
            key = self._by_route.get((block, route), ("", b""))
        pool = self._pools.get(key)
        if pool is None:  # it was with an earlier process of this agent, or was given up
            head = bridge.BridgeEnvelope(envelope.session, -1, self._epoch, bridge.Reset("say hello"))
            self._link.send(route, [bridge.encode(head)])
            return
        try:
            pool.on_message(envelope, body, self.now_us)
        except Undecodable as e:
            return self._on_odd(block, route, e.message)
        if isinstance(envelope.message, bridge.Inventory):
            self._gangs.adopt(pool)
        self._changed(pool)

    def _on_hello(self, block: str, route: bytes, hello: bridge.Hello) -> NodeKey:
        key = (block, hello.boot)
        if hello.protocol != bridge.PROTOCOL:
            why = f"the agent speaks protocol {bridge.PROTOCOL}, the node {hello.protocol}: install the same oncue"
            self._refuse(route, why)
            return key
        if key not in self._pools and len(self._pools) < MOST_NODES:
            pool = self._pools[key] = self._pool_class(block, hello, self, self._epoch, self.now_us)
            pool.job, pool.draining = self._jobs.get(block, ""), block in self._draining
            self._known.join(key)
        if (former := self._routes.get(key)) is not None:
            self._by_route.pop((block, former), None)
        self._routes[key] = route
        self._by_route[block, route] = key
        return key

    def _on_odd(self, block: str, route: bytes, why: str) -> None:
        """End a node whose messages cannot be read."""
        why = f"its messages cannot be read: {why}"
        self._limited.log(logging.ERROR, block, "a node of block %s was given up: %s", block, why)
        key = self._by_route.get((block, route))
        pool = self._pools.get(key) if key is not None else None
        if pool is None:
            return self._refuse(route, why)
        pool.refuse("version", why)
        self._changed(pool)

    def _refuse(self, route: bytes, why: str) -> None:
        head = bridge.BridgeEnvelope(0, -1, self._epoch, bridge.Refuse("version", why))
        self._link.send(route, [bridge.encode(head)])

    def _send(self, pool: NodePool) -> None:
        if pool.out:
            out, pool.out = pool.out, []
            route = self._routes.get(pool.key, b"")
            if not all(self._link.send(route, parts) for parts in out):
                pool.on_closed(self.now_us)

    def _changed(self, pool: NodePool) -> None:
        """Send the pool's messages, and note its room and its events."""
        name = pool.name
        self._send(pool)
        self._dirty[name] = pool
        if pool.ready and name not in self._joined:
            self._joined.add(name)
            self._changes.append(NodeChange(pool.block, pool.facts.host, True))
        if pool.gone:
            self._remove(pool)
        self._note_room(pool)

    def _note_room(self, pool: NodePool) -> None:
        self._rooms.set_room(pool, 0 if pool.gone or self._gangs.has(pool) else pool.room())

    def _remove(self, pool: NodePool) -> None:
        if self._pools.pop(pool.key, None) is None:
            return
        route = self._routes.pop(pool.key, None)
        if route is not None:
            self._by_route.pop((pool.block, route), None)
        self._joined.discard(pool.name)
        self._unacked.pop(pool.name, None)
        self._changes.append(NodeChange(pool.block, pool.facts.host, False, pool.gone))
        if (first := self._gangs.on_gone(pool)) is not None:
            self._changed(first)
        log.info("the node %s of block %s has left: %s", pool.facts.host, pool.block, pool.gone)

    # ------------------------------------------------------------ a WorkerPool

    @property
    def size(self) -> int:
        """Workers of all nodes that are here."""
        return sum(p.size for p in self._pools.values())

    @property
    def ready(self) -> int:
        """Workers that take tasks."""
        return sum(p.ready for p in self._pools.values())

    @property
    def busy(self) -> int:
        """Workers that run a task."""
        return sum(p.busy for p in self._pools.values())

    @property
    def trouble(self) -> str:
        """Reason why a node's workers do not start; empty if some do."""
        found = next((p for p in self._pools.values() if p.trouble), None)
        return f"{found.facts.host}: {found.trouble}" if found is not None and not self.ready else ""

    def room(self) -> int:
        """Return how many chunks `run` accepts now."""
        return self._rooms.total + self._gangs.ready()

    def chunk_size(self, function: str) -> int:
        """Return how many tasks of this function a chunk should hold."""
        return self.sizer.chunk_size(function)

    def misfit(self, options: RunOptions) -> str:
        """Return why no block can run a task of these options; "" if one may.

        Nodes come and go, and each refuses what can never run on it.
        """
        return self.block_misfit(options.resources)

    def run(
        self,
        function: str,
        body: bytes | None,
        timeout_ms: int,
        attempt: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
    ) -> None:
        """Send a chunk to the node with most room. It is requeued if there is none."""
        self.now_us = self._clock()
        nodes, width = self.size_of(function, options)
        need, key = self.need_us(function, options), affinity_of(options)
        if nodes:
            gang = self._gangs.start(key_of(function, options), tasks[0].id)
            pool, options = (gang.nodes[0], self._gangs.options(gang, options)) if gang else (None, options)
        else:
            pool = (self._with_key(key, need) if key else None) or self._roomiest(need)
        if pool is None:
            self._back.append(tasks)
            return
        if key:
            self._key_nodes.add(key, pool.key)
        pool.now_us = max(pool.now_us, self.now_us)
        pool.run(function, timeout_ms, attempt, tasks, options, width, nodes)
        self._changed(pool)

    def rooms_of(self, key: str) -> list[tuple[str, int]]:
        """Return the nodes that had this affinity key, each with its room."""
        return [(p.name, self._rooms.of(p)) for p in self._had(key)]

    def _had(self, key: str) -> Iterator[NodePool]:
        """Yield the nodes that had an affinity key, and take tasks."""
        for node in self._key_nodes.of(key):
            pool = self._pools.get(node)
            if pool is not None and pool.ready and not pool.draining:
                yield pool

    def _with_key(self, key: str, need_us: int) -> NodePool | None:
        """Return the node with room that had an affinity key last."""
        return next((p for p in self._had(key) if self._rooms.of(p) and self._remains(p.block, need_us)), None)

    def _roomiest(self, need_us: int) -> NodePool | None:
        """Return the node with most room whose block does not end within `need_us`."""
        if not need_us or not self._ends_us:
            return self._rooms.roomiest()
        return self._rooms.roomiest(need_us, lambda pool: self._remains(pool.block, need_us))

    def may_start(self, function: str, options: RunOptions | None) -> bool:
        """Return True if a task of this call has room now, for as long as it needs."""
        nodes, need_us = self.size_of(function, options)[0], self.need_us(function, options)
        if nodes:
            return self._gangs.is_ready(key_of(function, options), nodes, need_us)
        return self._rooms.total > 0 and (not need_us or self._roomiest(need_us) is not None)

    def want_gangs(self, calls: Iterable[tuple[str, RunOptions | None]]) -> None:
        """Keep nodes for these calls, whose tasks need several. Called once a second."""
        self._gangs.want({key_of(*call): (self.size_of(*call)[0], self.need_us(*call)) for call in calls})

    def _remains(self, block: str, need_us: int) -> bool:
        by = self.now_us + need_us
        return self._ends_us.get(block, by) >= by

    def set_ends(self, ends_us: dict[str, int]) -> None:
        """Set when blocks end: no task goes there that needs longer."""
        self._ends_us = ends_us
        self._rooms.forget_needs()

    def cancel(self, ids: frozenset[bytes]) -> None:
        """End those of these tasks that the nodes hold."""
        for pool in list(self._pools.values()):
            if not pool.tasks.held.keys().isdisjoint(ids):
                pool.cancel(ids)
                self._changed(pool)

    def drain(self) -> PoolEvents:
        """Return the events since the last call."""
        events = PoolEvents()
        if self._back:
            events.requeue, self._back = [("", 0, tasks) for tasks in self._back], []
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for pool in dirty.values():
                found = pool.drain()
                self._measure(found)
                events.ended += self._gangs.on_ended(found.ended, self.now_us)
                for _, _, tasks in found.requeue:
                    self._gangs.on_requeued(tasks)
                events.requeue += found.requeue
                events.started += found.started
                events.output += found.output
                self._note_drained(pool)
        events.ended += self._gangs.settled()
        for pool in [p for p in self._doubted.values() if not self._gangs.in_doubt(p)]:
            del self._doubted[pool.name]
            self._note_drained(pool)
        return events

    def _note_drained(self, pool: NodePool) -> None:
        """Let `acknowledge` count for the node, unless a result of it is in doubt."""
        if self._gangs.in_doubt(pool):
            self._doubted[pool.name] = pool
            self._unacked.pop(pool.name, None)
        elif pool.gone:
            self._left.append(pool.key)
        else:
            self._unacked[pool.name] = pool

    def _measure(self, events: PoolEvents) -> None:
        for function, _, ends in events.ended:
            if ends and ends[-1].started_us:
                self.durations.add(function, ends[-1].ended_us - ends[-1].started_us)

    def acknowledge(self) -> None:
        """Note that the agent's journal has all results that were drained."""
        if self._unacked:
            unacked, self._unacked = self._unacked, {}
            for pool in unacked.values():
                pool.acknowledge()
                self._send(pool)
        if self._left:
            left, self._left = self._left, []
            for key in left:
                if key not in self._pools:  # else it has come back
                    self._known.leave(key)

    @property
    def next_wake_us(self) -> int | None:
        """Time at which `tick` is due."""
        return 0 if self._link.readable else self._next_tick_us

    @property
    def fds_version(self) -> int:
        """Number that changes whenever `fds` does: they stay."""
        return 0

    def fds(self) -> list[int]:
        """Return the descriptors to watch for reading."""
        return self._link.filenos()

    def on_readable(self, _fd: int) -> None:
        """Read what the nodes have sent."""
        self.now_us = self._clock()
        self._link.receive(self.on_message)

    def tick(self, now_us: int) -> None:
        """Read what is there, and do what is due at the nodes."""
        self.now_us = max(self.now_us, now_us)
        self._link.receive(self.on_message)
        if self.now_us - self._ticked_us > STOPPED_US:
            self._resumed_us = self.now_us
        self._ticked_us = self.now_us
        if not self._link.readable and self.now_us - self._resumed_us > STOPPED_US:
            self._read_us = self.now_us
        if self.now_us < self._next_tick_us:
            return
        self._next_tick_us = self.now_us + TICK_US
        for pool in list(self._pools.values()):
            if pool.tick(self.now_us, self._read_us):
                self._changed(pool)

    def close(self, grace_s: float) -> None:
        """Leave the nodes: they go on, and dial again. See `hand_back` and `dismiss`."""
        self._link.close()

    # ------------------------------------------------------------ blocks

    def allow(self, block: str, public_key: bytes, job: str = "") -> None:
        """Let a block's nodes join. `job`: its name, for people. Raises Invalid (the key)."""
        if self._keys.get(block) != public_key:
            self._link.allow(block, public_key)
            self._keys[block] = public_key
        self._jobs[block] = job
        for pool in self._of(block):
            pool.job = job

    def drain_block(self, block: str) -> None:
        """Give a block's nodes no new tasks, and take back what waits there."""
        for pool in self._of(block):
            pool.drain_node()
            self._changed(pool)
        self._draining.add(block)

    def hand_back(self, block: str, spared: Set[bytes] = frozenset()) -> None:
        """End a block's tasks but the spared ones, and requeue them uncharged."""
        self.drain_block(block)
        for pool in self._of(block):
            pool.hand_back(spared)
            self._changed(pool)

    def dismiss(self, block: str) -> None:
        """Let a block's nodes exit. What they run still may be lost."""
        for pool in self._of(block):
            pool.dismiss()
            self._changed(pool)

    def end_block(self, block: str, why: str) -> None:
        """Give a block up whose job is over.

        What may have begun is lost, the rest is requeued.
        """
        for pool in self._of(block):
            pool.lose(why)
            self._changed(pool)
        self._known.end_block(block)
        if (key := self._keys.pop(block, None)) is not None:
            self._link.forbid(block, key)
        self._jobs.pop(block, None)
        self._draining.discard(block)

    def held_by(self, block: str) -> set[bytes]:
        """Return the tasks that the block's nodes hold."""
        return {i for p in self._of(block) for i in p.tasks.held}

    def changes(self) -> list[NodeChange]:
        """Return who has joined and left since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(
                p.block, p.facts.host, p.facts.pid, p.session.phase.value, p.size, p.ready, p.busy, len(p.tasks.held),
                p.size if self._gangs.runs(p) else p.tasks.long + p.tasks.short, self._gangs.runs(p), p.trouble,
                p.joined_us, p.facts.use, p.facts.began_us,
            )
            for p in self._pools.values()
        ]  # fmt: skip

    def _of(self, block: str) -> list[NodePool]:
        return [p for p in self._pools.values() if p.block == block]
