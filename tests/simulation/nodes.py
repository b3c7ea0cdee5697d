"""Agent and nodes on virtual time: `python -m tests.simulation --nodes`.

    a scripted server ◄──► Hub (the agent of oncue.endpoint, its journal in a MemoryFile, a PoolSet)
                            ▲│  links: delays, drops, duplicates, cuts
                            │▼
                         Site (a node: an agent whose journal dies with it, a SimPool)

The connection to the server has no faults here: world.py has those. What must hold:

- Each task ends, and each attempt has one end at the server.
- An attempt is begun at most once, wherever it runs; except what a node handed back.
- An attempt is lost only if a node died, or could not be reached.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.effects import CancelRunning, Connect, RunTasks, SendMessage
from oncue.endpoint.agent.journal import Journal
from oncue.endpoint.agent.session import SessionPhase
from oncue.endpoint.loop import execute_in_pool, forward
from oncue.endpoint.nodes.listener import Received
from oncue.endpoint.nodes.node_pool import NodePool
from oncue.endpoint.nodes.pool_set import PoolSet
from oncue.ids import derived_ids
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import Ref, pack_ref
from oncue.protocol.records import CANCELLED, LOST, OK, VERSION, Call, Ended, TaskRecord
from oncue.protocol.run_options import RunOptions
from tests.simulation.clock import Clock
from tests.simulation.site import MemoryCache, MemoryFile, Site, behaviour, content_of

FAULTY_US, LIMIT_US = 20_000_000, 400_000_000
MOST_ATTEMPTS = 4


class MemoryContent:
    """NodeContent over a MemoryCache."""

    def __init__(self, cache: MemoryCache) -> None:
        self._cache = cache
        self._uploads: dict[tuple[str, str], bytearray] = {}

    def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        content = self._cache.bodies.get(sha256) or self._cache.whole.get(sha256)
        if content is None:
            raise OSError(2, "no such content")
        return len(content), content[offset : offset + size]

    def write(self, node: str, sha256: str, offset: int, size: int, part: bytes) -> int:
        blob = self._uploads.setdefault((node, sha256), bytearray())
        assert offset <= len(blob), "a gap in an upload"
        blob[offset:] = part
        if len(blob) >= size:
            self._cache.whole[sha256] = bytes(self._uploads.pop((node, sha256)))
        return offset + len(part)

    def abort(self, node: str) -> None:
        for key in [k for k in self._uploads if k[0] == node]:
            del self._uploads[key]


class Hub:
    """The agent's process: agent, pool set, their loop."""

    readable = False

    def __init__(self, world: NodeWorld, pool_class: type[NodePool]) -> None:
        self.world, self.clock = world, world.clock
        self.alive = True
        self.time = self.clock.process("hub")
        journal = Journal(world.file, world.rng.randbytes(8))
        who = AgentIdentity("ep", "1", "3.11", "login", 1, world.rng.randbytes(8))
        self.agent = Agent(who, journal, world.cache, world.rng, 4, self.time.now_us(), adopts=True)
        self.pools = PoolSet(
            self, MemoryContent(world.cache), self.agent.claim, self.agent.nodes, self.time.now_us(),
            self.time.now_us, pool_class,
        )  # fmt: skip
        self.agent.rooms_of = self.pools.rooms_of
        world.configure(self)
        self._turning = False
        self._inbox: list[Callable[[], None]] = []
        for block in world.blocks:
            self.pools.allow(block, b"")
        self._tick()

    # a NodeLink

    def send(self, route: bytes, parts: list[bytes]) -> bool:
        return self.world.to_node(route, parts)

    def filenos(self) -> list[int]:
        return []

    def receive(self, on_message: Received) -> None: ...

    def allow(self, block: str, public_key: bytes) -> None: ...

    def forbid(self, block: str, public_key: bytes) -> None:
        self.world.blocks.discard(block)

    def close(self) -> None: ...

    # the loop

    def _tick(self) -> None:
        if self.alive:
            self.input(lambda: self.world.on_tick(self))
            self.clock.after(50_000, self._tick)

    def message(self, block: str, route: bytes, parts: list[bytes]) -> None:
        def deliver() -> None:
            self.pools.now_us = self.time.now_us()
            self.pools.on_message(block, route, parts)

        self.input(deliver)

    def input(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        if self._turning or not self.alive:
            return
        self._turning = True
        try:
            while self._inbox and self.alive:
                inbox, self._inbox = self._inbox, []
                for one in inbox:
                    one()
                self._turn()
        finally:
            self._turning = False

    def _turn(self) -> None:
        agent, now = self.agent, self.time.now_us()
        self.pools.tick(now)
        self._forward()
        effects = agent.turn(now, self.pools.room(), self.pools.chunk_size)
        for effect in effects:
            if self.world.crash_chance and self.world.rng.random() < self.world.crash_chance:
                return self.world.crash_hub()
            match effect:
                case SendMessage():
                    self.world.to_server(effect.parts)
                case RunTasks() | CancelRunning():
                    execute_in_pool(self.pools, effect)
        if agent.journalled:
            self.pools.acknowledge()
        self._forward()

    def _forward(self) -> None:
        forward(self.agent, self.pools.drain())


class Server:
    """The part of a server that an agent needs, with retries of lost attempts."""

    def __init__(self, world: NodeWorld) -> None:
        self.world = world
        self.session = self.n = 0
        self.connected = False
        self.held: set[bytes] = set()  # as the agent says
        self.ends: dict[tuple[bytes, int], Ended] = {}
        self.open: dict[bytes, tuple[TaskRecord, str, int]] = {}  # with function and attempt
        self.waiting: list[tuple[TaskRecord, str, int]] = []  # to be sent

    def send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        hub, session = self.world.hub, self.session
        head = bridge.encode(bridge.BridgeEnvelope(session, self.n, 1, message))
        self.n += 1
        if hub is not None:
            hub.input(lambda: hub.agent.on_message([head, body] if body else [head], hub.time.now_us()))

    def on_frame(self, parts: list[bytes]) -> None:
        envelope, body = bridge.decode_from_agent(parts)
        message = envelope.message
        match message:
            case bridge.Hello():
                self.session, self.n, self.connected, self.held = envelope.session, 0, False, set()
                if not message.held:
                    self._welcome()
            case bridge.Inventory():
                self.held.update(i for i, _ in bridge.unpack_inventory(body))
                if message.last:
                    self._welcome()
            case bridge.Results():
                for e in decode(list[Ended], body):
                    self._end(e)
                self.send(bridge.Ack(message.seq))
            case bridge.FetchPart():
                content = self.world.content.get(message.sha256, b"")
                why = "" if content else "no such content"
                self.send(
                    bridge.BlobPart(message.sha256, message.offset_bytes, len(content), why),
                    content[message.offset_bytes :][: bridge.PART_BYTES],
                )
            case bridge.UploadPart():
                self.send(bridge.UploadAck(message.sha256, message.offset_bytes + len(body)))
        self.flush()

    def _welcome(self) -> None:
        self.connected = True
        missing = [i for i in self.open if i not in self.held]
        self.waiting += [self.open.pop(i) for i in missing]  # they did not arrive
        self.send(bridge.Welcome(1, "srv", "1", by_function=True))

    def _end(self, e: Ended) -> None:
        key = (e.id, e.attempt)
        if key in self.ends:
            assert self.ends[key] == e, f"{e.id.hex()}/{e.attempt} has two ends"
            return  # sent again
        self.ends[key] = e
        task, function, attempt = self.open.pop(e.id)
        assert attempt == e.attempt, "an end of another attempt"
        if e.status == LOST and attempt < MOST_ATTEMPTS:
            self.waiting.append((task, function, attempt + 1))

    def flush(self) -> None:
        if self.connected and self.world.hub is not None:
            waiting, self.waiting = self.waiting, []
            for task, function, attempt in waiting:
                self.open[task.id] = (task, function, attempt)
                call = encode(Call(VERSION, function, "ep", "me", run=self.world.options_of(task)))
                self.send(bridge.Dispatch(call, attempt, 1, 1), encode([task]))


class NodeWorld:
    """One seed. `crashes`: chance that the agent dies, at each of its effects."""

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        pool_class: type[NodePool] = NodePool,
        crashes: float = 0.0,
    ) -> None:
        self.rng = rng = random.Random(f"nodes {seed}")
        self.clock = Clock()
        self.clock.trace = trace
        self.pool_class = pool_class
        self.file, self.cache = MemoryFile(), MemoryCache()
        self.fair = rng.random() < 0.1
        self.loss = 0.0 if self.fair else rng.choice((0.0, 0.0, 0.01, 0.1))
        self.double = 0.0 if self.fair else rng.choice((0.0, 0.02, 0.2))
        self.crash_chance = self._crashes = crashes
        self.functions = [rng.randbytes(rng.choice((40, 40, 2_100_000))) for _ in range(rng.randrange(1, 4))]
        self.content = {hashlib.sha256(f).hexdigest(): f for f in self.functions}
        self.runs: Counter[tuple[bytes, int]] = Counter()
        self.handed_back: set[bytes] = set()
        self.cancelled: set[bytes] = set()
        self.blind: set[bytes] = set()  # may have failed by what the agent does not know
        self.nodes: dict[str, Site] = {}
        self.dead = 0  # nodes or workers that died, or may have been given up
        self.blocks: set[str] = set()
        self.drained: set[str] = set()
        self.cuts: set[bytes] = set()
        self._hubs: dict[bytes, int] = {}  # route -> which hub it was dialled to
        self._arrive: dict[tuple[bytes, bool], int] = {}
        self.hub: Hub | None = None
        self._hub_number = self._names = self._submits = 0
        self.server = Server(self)
        self.ids: list[bytes] = []

    # ------------------------------------------------------------ the network

    def to_server(self, parts: list[bytes]) -> None:
        self.clock.after(500, lambda: self.server.on_frame(parts))

    def _post(self, route: bytes, up: bool, deliver: Callable[[], None]) -> None:
        rng = self.rng
        if rng.random() < self.loss:
            return
        at = max(self._arrive.get((route, up), 0), self.clock.now_us + rng.choice((100, 1_000, 20_000)))
        self._arrive[route, up] = at

        def arrive() -> None:
            if route not in self.cuts:
                deliver()

        self.clock.at(at, arrive)
        if rng.random() < self.double:
            self.clock.at(at + rng.randrange(50_000), arrive)

    def _from_node(self, site: Site, parts: list[bytes]) -> None:
        route, block = f"{site.name} {site.link}".encode(), site.block
        self._note(f"{route.decode()} ->", bridge.decode_from_agent, parts)

        def deliver() -> None:
            if self.hub is not None and self._hubs.get(route) == self._hub_number and block in self.blocks:
                self.hub.message(block, route, parts)

        self._post(route, True, deliver)

    def to_node(self, route: bytes, parts: list[bytes]) -> bool:
        name, _, link = route.decode().partition(" ")
        site = self.nodes.get(name)
        if site is None or site.agent is None or str(site.link) != link:
            return False
        self._note(f"-> {route.decode()}", bridge.decode_from_bridge, parts)
        self._post(route, False, lambda: site.frame(int(link), parts))
        return True

    def _note(self, where: str, decoder: Callable[[list[bytes]], Any], parts: list[bytes]) -> None:
        if self.clock.trace is None:
            return
        envelope, body = decoder(parts)
        message, ids = envelope.message, ""
        if isinstance(message, bridge.Dispatch):
            ids = " ".join(t.id.hex()[-8:] for t in decode(list[TaskRecord], body))
        elif isinstance(message, bridge.Results):
            ids = f"{message.seq}: " + " ".join(
                f"{e.id.hex()[-8:]}/{e.attempt}:{e.status}" for e in bridge.decode_ends(body)
            )
        elif isinstance(message, bridge.Inventory):
            ids = " ".join(f"{i.hex()[-8:]}/{n}" for i, n in bridge.unpack_inventory(body))
        elif isinstance(message, bridge.CancelTasks | bridge.Recall):
            ids = " ".join(i.hex()[-8:] for i in bridge.unpack_ids(body))
        if not isinstance(message, bridge.Heartbeat):
            self.clock.note(f"{where} {envelope.session % 1_000_000_000}:{envelope.n} {type(message).__name__} {ids}")

    def _on_dial(self, site: Site, _to: Connect) -> None:
        route = f"{site.name} {site.link}".encode()
        if self.hub is None:
            self.clock.after(1_000, lambda: self._break(site, "nobody answers there"))
        else:
            self._hubs[route] = self._hub_number

    def _break(self, site: Site, why: str) -> None:
        site.input(lambda agent: agent.disconnect(why, site.time.now_us()))

    # ------------------------------------------------------------ tasks over several nodes (gangs.py)

    def configure(self, hub: Hub) -> None:
        """Prepare a new process of the agent."""

    def on_tick(self, hub: Hub) -> None:
        """Do what the agent's process does now and then."""

    def options_of(self, task: TaskRecord) -> RunOptions | None:
        """Return the options of a task's call."""
        return RunOptions(affinity=f"k{task.id[-1] % 8}") if task.id[-1] % 2 else None

    # ------------------------------------------------------------ what happens

    def add_block(self) -> None:
        """Start the nodes of another job: one."""
        self._names += 1
        self.add_node(f"b{self._names}", f"b{self._names}")

    def add_node(self, name: str, block: str) -> Site:
        """Start a node of a block."""
        self.blocks.add(block)
        if self.hub is not None:
            self.hub.pools.allow(block, b"")
        site = Site(name, self.clock, self.rng, self.rng.randrange(1, 4), self._from_node, self._on_start)
        site.on_dial, site.block = self._on_dial, block
        self.nodes[name] = site
        site.boot()
        return site

    def start_hub(self) -> None:
        if self.hub is None:
            self._hub_number += 1
            self.clock.note(f"hub {self._hub_number} starts")
            self.hub = Hub(self, self.pool_class)
            for block in self.drained:
                self.hub.pools.drain_block(block)

    def crash_hub(self) -> None:
        """kill -9 of the agent. Tasks on their way to a node did not reach it, or it names them."""
        if self.hub is not None:
            self.clock.note("the hub crashes")
            self.hub.alive = False
            self.hub, self.server.connected = None, False
            if self._crashes:
                self.clock.after(300_000, self.start_hub)
            for site in self.nodes.values():
                self.clock.after(self.rng.randrange(20_000), partial(self._break, site, "closed"))

    def kill_node(self, site: Site) -> None:
        self.dead += 1
        self.clock.note(f"{site.name} is killed")
        site.crash()
        del self.nodes[site.name]
        last = all(other.block != site.block for other in self.nodes.values())
        if last and self.rng.random() < 0.5:  # the scheduler says so
            self.clock.after(2_000_000, lambda: self.end_block(site.block))
        self.clock.after(self.rng.choice((100_000, 3_000_000)), self.add_block)

    def end_block(self, block: str) -> None:
        if self.hub is not None:
            hub = self.hub
            hub.input(lambda: hub.pools.end_block(block, "the job has ended"))

    def _on_start(self, task: TaskRecord, attempt: int) -> None:
        self.runs[task.id, attempt] += 1
        self.clock.note(f"begins {task.id.hex()[-8:]}/{attempt}")
        assert self.runs[task.id, attempt] == 1 or task.id in self.handed_back, f"{task.id.hex()} is begun twice"

    def submit(self) -> None:
        rng = self.rng
        self._submits += 1
        ids = derived_ids(self.clock.now_us // 1000, self._submits.to_bytes(8, "big"), rng.choice((1, 1, 3, 12)))
        function = hashlib.sha256(rng.choice(self.functions)).hexdigest()
        self.ids += ids
        self.server.waiting += [(TaskRecord(i, self._args(i), ("s", i.hex())), function, 1) for i in ids]
        self.server.flush()
        if rng.random() < 0.2:
            one = rng.choice(ids)
            self.clock.after(rng.randrange(2_000_000), lambda: self._cancel(one))

    def _args(self, task_id: bytes) -> bytes:
        if self.rng.random() < 0.9:
            return b"m\x92\x90\x80"
        blob = b"m" + task_id * 4
        sha = hashlib.sha256(blob).hexdigest()
        self.content[sha] = blob
        return pack_ref(Ref(sha, len(blob)))

    def _cancel(self, task_id: bytes) -> None:
        if self.server.connected and task_id in self.server.open:
            self.cancelled.add(task_id)
            self.server.send(bridge.CancelTasks("by the user"), task_id)

    def _fault(self) -> None:
        rng = self.rng
        if not self.nodes:
            return
        site = rng.choice(list(self.nodes.values()))
        down_us = rng.choice((1_000, 300_000, 4_000_000, 20_000_000))
        kind = rng.randrange(6)
        if kind == 0:
            self.kill_node(site)
        elif kind == 1:
            self.crash_hub()
            self.clock.after(min(down_us, 4_000_000), self.start_hub)
        elif kind == 2:
            route = f"{site.name} {site.link}".encode()
            self.clock.note(f"{site.name}: its link is cut")
            self.cuts.add(route)
            self.dead += 1  # it may be given up
            if rng.random() < 0.5:
                self.clock.after(down_us, lambda: self.cuts.discard(route))
        elif kind == 3:
            site.pool.kill_worker(rng)
            self.dead += 1
        elif kind == 4 and self.hub is not None:
            hub = self.hub
            self.clock.note(f"{site.block} is drained")
            self.drained.add(site.block)
            if rng.random() < 0.5:
                hub.input(lambda: self._hand_back(hub, site.block))
            else:
                hub.input(lambda: hub.pools.drain_block(site.block))
            self.clock.after(1_000, self.add_block)
        elif kind == 5:
            self.crash_chance = rng.choice((0.005, 0.05))
            self.clock.after(1_000_000, self._calm)

    def _hand_back(self, hub: Hub, block: str) -> None:
        self.handed_back |= hub.pools.held_by(block)
        for site in self.nodes.values():  # of which the agent may not know yet
            if site.block == block:
                self.handed_back.update(t.id for chunk in site.pool.chunks for t in chunk.tasks)
        hub.pools.hand_back(block)

    def _calm(self) -> None:
        self.crash_chance = self._crashes
        self.start_hub()

    def _over(self) -> bool:
        return not self.server.open and not self.server.waiting

    def run(self) -> None:
        rng, clock = self.rng, self.clock
        begun = clock.now_us
        self.start_hub()
        for _ in range(rng.randrange(1, 4)):
            self.add_block()
        for _ in range(rng.randrange(5, 30)):
            clock.after(rng.randrange(FAULTY_US), self.submit)
        if not self.fair:
            for _ in range(rng.randrange(0, 8)):
                clock.after(rng.randrange(FAULTY_US), self._fault)
        clock.after(FAULTY_US + 5_000_000, self._make_fair)
        while clock.now_us - begun < LIMIT_US:
            if clock.now_us - begun > FAULTY_US + 6_000_000 and self._over():
                break
            assert clock.step()
        self._check()

    def _make_fair(self) -> None:
        self.clock.note("from here on all is fair")
        self.loss = self.double = self.crash_chance = self._crashes = 0.0
        self.start_hub()
        for _ in range(2):
            self.add_block()

    def _check(self) -> None:
        server = self.server
        assert self._over(), f"{[i.hex()[-8:] for i in server.open]} did not end; {len(server.waiting)} wait"
        assert server.connected
        assert self.hub is not None
        assert self.hub.agent.phase is SessionPhase.CONNECTED
        for task_id in self.ids:
            last = max(n for i, n in server.ends if i == task_id)
            end = server.ends[task_id, last]
            status, _, large = behaviour(task_id, last)
            if end.status == CANCELLED:
                assert task_id in self.cancelled, f"{task_id.hex()} was cancelled by nobody"
            elif end.status == LOST:
                assert self.dead, f"{task_id.hex()} was lost, and no node died"
            else:
                assert end.status == status or task_id in self.blind, f"{task_id.hex()} ended with {end.status}"
                assert self.runs[task_id, last]
                if end.status == OK and not large:
                    assert end.value == content_of(task_id)
        if not self.dead:
            assert not [e for e in server.ends.values() if e.status == LOST], "lost without a reason"
