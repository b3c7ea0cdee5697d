"""An endpoint: the real agent on a disk and with a pool that are simulated."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import msgspec

from oncue.endpoint.agent.agent import Agent, AgentIdentity
from oncue.endpoint.agent.effects import CancelRunning, Connect, RememberServers, RunTasks, SendMessage
from oncue.endpoint.agent.journal import Journal
from oncue.protocol.codec import encode
from oncue.protocol.payload import Ref, pack_ref
from oncue.protocol.records import CANCELLED, ERROR, LOST, OK, TIMEOUT, Ended, Failure, TaskRecord
from tests.simulation.clock import Clock
from tests.simulation.order import OrderedQueue

HANGS_US = 5_000_000  # until a task that hangs is looked at again
WHY = encode(Failure("E", "why"))


def behaviour(task_id: bytes, attempt: int) -> tuple[int, int, bool]:
    """(status, duration in µs, large result) of an attempt: by a hash, so that any worker does the same."""
    h = hashlib.blake2b(task_id + bytes([attempt]), digest_size=4).digest()
    duration = (20, 500, 20_000, 3_000_000)[min(3, h[0] // 72)] * (1 + h[1] % 4)
    return (ERROR if h[2] < 40 else OK), duration, h[3] < 25


def content_of(task_id: bytes) -> bytes:
    """The right value, as a blob or inline."""
    return b"m" + encode(task_id.hex())


class MemoryFile:
    """The journal's bytes. What was appended survives the process."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.room: int | None = None  # free bytes of the disk; None: it is not full

    def read(self) -> bytes:
        return bytes(self.data)

    def append(self, data: bytes | bytearray) -> int:
        written = len(data) if self.room is None else min(self.room, len(data))
        if not written and data:
            raise OSError(28, "No space left on device")
        if self.room is not None:
            self.room -= written
        self.data += data[:written]
        return written

    def truncate(self, size: int) -> None:
        del self.data[size:]

    def replace(self, data: bytes) -> None:
        if self.room is not None:
            raise OSError(28, "No space left on device")
        self.data = bytearray(data)


class MemoryCache:
    """A BlobCache in memory. Finished blobs survive the process."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.whole: dict[str, bytes] = {}
        self.partial: dict[str, bytearray] = {}

    def read_function(self, sha256: str) -> bytes | None:
        return self.bodies.get(sha256)

    def write_function(self, sha256: str, body: bytes) -> None:
        self.bodies[sha256] = body

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.whole

    def blob_size(self, sha256: str) -> int:
        if sha256 not in self.whole:
            raise OSError(2, "no such blob")
        return len(self.whole[sha256])

    def read_blob(self, sha256: str, offset: int, size: int) -> bytes:
        if sha256 not in self.whole:
            raise OSError(2, "no such blob")
        return self.whole[sha256][offset : offset + size]

    def write_blob(self, sha256: str, offset: int, data: bytes) -> None:
        blob = self.partial.setdefault(sha256, bytearray())
        blob[offset:] = data

    def finish_blob(self, sha256: str) -> None:
        self.whole[sha256] = bytes(self.partial.pop(sha256, b""))

    def drop_blob(self, sha256: str, fresh_s: float = 0.0) -> bool:
        self.whole.pop(sha256, None)
        self.partial.pop(sha256, None)
        return True

    def blobs(self) -> list[str]:
        return list(self.whole)


class Chunk(msgspec.Struct, eq=False):
    function: str
    timeout_us: int
    attempt: int
    tasks: list[TaskRecord]
    at: int = 0
    started_us: int = 0
    ended: list[Ended] = []
    life: int = 0  # counts what runs: an end that was scheduled for another life does not happen
    hosts: tuple[str, ...] = ()  # of a task over several nodes


class SimPool:
    """Workers that take a chunk each."""

    def __init__(self, site: Site, workers: int) -> None:
        self.site, self.workers = site, workers
        self.chunks: list[Chunk] = []
        self.alive = True

    def room(self) -> int:
        return self.workers - len(self.chunks)

    def chunk_size(self, function: str) -> int:
        return 1 + int(function[:2], 16) % 5

    def run(self, run: RunTasks) -> None:
        assert self.room() > 0, "more chunks than the pool asked for"
        assert hashlib.sha256(run.body).hexdigest() == run.function, "a body that is not the function's"
        hosts = run.options.hosts if run.options is not None else ()
        chunk = Chunk(run.function, run.timeout_ms * 1000, run.attempt, run.tasks, hosts=hosts)
        self.chunks.append(chunk)
        self._start(chunk)

    def _start(self, chunk: Chunk) -> None:
        clock, task = self.site.clock, chunk.tasks[chunk.at]
        chunk.started_us = self.site.time.now_us()
        chunk.life += 1
        life = chunk.life
        again = (task.id, chunk.attempt) in self.site.finished and not self.site.was_full
        assert not again, f"{task.id.hex()} attempt {chunk.attempt} had ended, and is run again"
        self.site.on_start(task, chunk.attempt)
        _, duration, _ = behaviour(task.id, chunk.attempt)
        over = chunk.timeout_us and duration > chunk.timeout_us
        clock.after(chunk.timeout_us if over else duration, lambda: self._end(chunk, life, bool(over)))

    def _end(self, chunk: Chunk, life: int, over: bool) -> None:
        if not self.alive or chunk.life != life or chunk not in self.chunks:
            return
        task = chunk.tasks[chunk.at]
        status, _, large = behaviour(task.id, chunk.attempt)
        if chunk.hosts:
            found = self.site.of_hosts(chunk, status)
            if found is None:
                self.site.clock.after(HANGS_US, lambda: self._end(chunk, life, over))
                return
            status = found
        value = WHY
        if over:
            status = TIMEOUT
        elif status == OK:
            value = content_of(task.id)
            if large:
                sha = hashlib.sha256(value).hexdigest()
                self.site.cache.whole[sha] = value
                value = pack_ref(Ref(sha, len(value)))
        self._next(chunk, status, value)

    def _next(self, chunk: Chunk, status: int, value: bytes) -> None:
        """End the running task with this result, and start the next."""
        task, now = chunk.tasks[chunk.at], self.site.time.now_us()
        end = Ended(task.id, chunk.attempt, status, chunk.started_us, now, value, b"", task.event)
        chunk.at += 1
        if chunk.at < len(chunk.tasks):
            self._start(chunk)
        else:
            self.chunks.remove(chunk)
        self.site.finished.add((task.id, chunk.attempt))
        self.site.input(lambda agent: agent.on_results([end]))

    def cancel(self, ids: frozenset[bytes]) -> None:
        for chunk in list(self.chunks):
            waiting = [t for t in chunk.tasks[chunk.at + 1 :] if t.id in ids]
            chunk.tasks = chunk.tasks[: chunk.at + 1] + [t for t in chunk.tasks[chunk.at + 1 :] if t.id not in ids]
            now = self.site.time.now_us()
            ends = [Ended(t.id, chunk.attempt, CANCELLED, 0, now, WHY, b"", t.event) for t in waiting]
            self.site.input(lambda agent, ends=ends: agent.on_results(ends))
            if chunk.tasks[chunk.at].id in ids:
                self._next(chunk, CANCELLED, WHY)

    def kill_worker(self, rng: random.Random) -> None:
        """Kill a worker: its task is lost, the rest is requeued."""
        if not self.chunks:
            return
        chunk = rng.choice(self.chunks)
        self.chunks.remove(chunk)
        task, rest = chunk.tasks[chunk.at], chunk.tasks[chunk.at + 1 :]
        end = Ended(task.id, chunk.attempt, LOST, chunk.started_us, self.site.time.now_us(), WHY, b"", task.event)

        def report(agent: Agent) -> None:
            agent.on_results([end])
            agent.requeue(rest)

        self.site.input(report)


class Site:
    def __init__(
        self,
        name: str,
        clock: Clock,
        rng: random.Random,
        workers: int,
        send: Callable[[Site, list[bytes]], None],
        on_start: Callable[[TaskRecord, int], None],
        agent_class: type[Agent] = Agent,
    ) -> None:
        self.name, self.clock, self.rng, self.workers = name, clock, rng, workers
        self.block = name  # the job that it is a node of
        #: Returns the status of a task over several nodes, by what its hosts did meanwhile; None: it hangs.
        self.of_hosts: Callable[[Chunk, int], int | None] = lambda chunk, status: status
        self._send, self.on_start, self._class = send, on_start, agent_class
        self.file, self.cache = MemoryFile(), MemoryCache()
        self.agent: Agent | None = None
        self.time = clock.process(name)
        self.pool = SimPool(self, workers)
        self.on_dial: Callable[[Site, Connect], None] | None = None
        self.link = 0  # number of the connection; each dial makes another
        self.crash_chance = 0.0  # at each effect
        self._wake_us = 0
        self.boots = 0
        self._boot = b""  # of the last process
        #: Attempts whose end the agent has received. They are never run again, whatever dies (unless a disk was full).
        self.finished: set[tuple[bytes, int]] = set()
        self.was_full = False
        self.servers: tuple[tuple[str, str], ...] = ()  # the newest list that the agent got
        self._inbox: list[Callable[[Agent], None]] = []
        self._turning = False

    def boot(self) -> None:
        """Start the agent's process."""
        if self.agent is not None:
            return
        self.boots += 1
        self.clock.note(f"{self.name} boots")
        self.pool = SimPool(self, self.workers)
        self.time = self.clock.process(self.name)
        journal = Journal(self.file, self.rng.randbytes(8))
        assert not [p for p in journal.recovered.problems if "damaged" in p], journal.recovered.problems
        former, self._boot = self._boot, self.rng.randbytes(8)
        elsewhere = random.Random(f"{self.name} {self._boot.hex()}").random() < 0.3
        after = b"" if elsewhere else former  # on another machine its former process may be alive
        who = AgentIdentity(self.block, "1", "3.11", self.name, self.boots, self._boot, after)
        self.agent = self._class(who, journal, self.cache, self.rng, self.workers, self.time.now_us())
        OrderedQueue.watch(self.agent.queue)
        self.input(lambda agent: None)

    def crash(self) -> None:
        """kill -9 of the agent; its workers die with it."""
        if self.agent is None:
            return
        self.clock.note(f"{self.name} crashes")
        self.agent = None
        self.pool.alive = False
        self.link += 1
        self._inbox.clear()
        self.cache.partial.clear()

    def input(self, call: Callable[[Agent], None]) -> None:
        """Apply an input and run a turn. Inputs during a turn wait for the next one."""
        self._inbox.append(call)
        if self._turning:
            return
        self._turning = True
        try:
            while self._inbox and self.agent is not None:
                inbox, self._inbox = self._inbox, []
                for one in inbox:
                    one(self.agent)
                self._turn()
        finally:
            self._turning = False
            self._inbox.clear()

    def frame(self, link: int, parts: list[bytes]) -> None:
        if link == self.link:
            self.input(lambda agent: agent.on_message(parts, self.time.now_us()))

    def _turn(self) -> None:
        agent = self.agent
        assert agent is not None
        effects = agent.turn(self.time.now_us(), self.pool.room(), self.pool.chunk_size)
        for effect in effects:
            if self.crash_chance and self.rng.random() < self.crash_chance:
                self.crash()
            if self.agent is not agent:
                return
            match effect:
                case SendMessage():
                    self._send(self, effect.parts)
                case RunTasks():
                    self.pool.run(effect)
                case CancelRunning():
                    self.pool.cancel(effect.ids)
                case RememberServers():
                    self.servers = effect.servers
                case Connect():
                    self.link += 1
                    self.clock.note(f"{self.name} dials {effect.bridge}, link {self.link}")
                    if self.on_dial is not None:
                        self.on_dial(self, effect)
        if self.agent is agent:
            self._sleep(agent)

    def _sleep(self, agent: Agent) -> None:
        wake = self.clock.now_us + agent.next_wake_us() - self.time.now_us()
        if self._wake_us <= self.clock.now_us or wake < self._wake_us:
            self._wake_us = wake
            self.clock.at(wake, lambda: self._woken(wake))

    def _woken(self, wake: int) -> None:
        if self._wake_us == wake:
            self._wake_us = 0
            self.input(lambda agent: None)
