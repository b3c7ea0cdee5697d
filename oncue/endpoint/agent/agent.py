"""State machine of the agent, sans-IO: messages and results in, effects out.

    Dispatch ──► journal ──► queue ──turn: room at the workers──► RunTasks
    Results ◄── journal ◄── outbox ◄── on_results
    FetchPart, BlobPart: fetcher (function bodies, large arguments)
    UploadPart, UploadAck: outbox (large results)

After its inputs the caller runs `turn` and executes the effects in order (effects.py). `turn`
writes the journal before it returns the effects, so the journal knows of everything that others
see. Without a connection (session.py) the agent continues with the tasks that it holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from oncue.endpoint.agent import journal
from oncue.endpoint.agent.effects import Connect, Effect, RememberServers
from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.held_tasks import HeldTasks
from oncue.endpoint.agent.node_shares import NodeShares
from oncue.endpoint.agent.session import SILENCE_US, AgentSession, SessionPhase
from oncue.endpoint.agent.unclaimed_tasks import CLAIM_US
from oncue.endpoint.blocks.records import BlocksUsage
from oncue.endpoint.machine_use import MachineUse
from oncue.endpoint.pool.base import WorkerStates
from oncue.errors import Refused, Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, Call, TaskRecord
from oncue.protocol.reports import Output, Report, Started, Usage

REWRITE_AGAIN_US = 1_000_000  # after a rewrite of the journal that failed
WHY_CHARS = 1_000
INVENTORY_TASKS = 50_000  # named in one message
OUTPUT_RATE = 256 * 1024  # bytes a second of live output; the outcome has the rest


class AgentIdentity(msgspec.Struct, frozen=True):
    """Identity of this agent, as it introduces itself to a server."""

    endpoint: str
    version: str
    python: str
    host: str
    pid: int
    boot: bytes  # 8 random bytes a start
    after: bytes = b""  # of the former process, if it surely has ended
    began_us: int = 0  # of a node: the start of its job


class Agent(HeldTasks):
    """HeldTasks with a server connection: session, credit, reports."""

    def __init__(
        self,
        identity: AgentIdentity,
        journal: journal.Journal,
        cache: BlobCache,
        rng: random.Random,
        workers: int,
        now_us: int,
        *,
        budget_bytes: int = 256 << 20,
        adopts: bool = False,
    ) -> None:
        super().__init__(journal, cache, workers, now_us, adopts=adopts)
        self.identity = identity
        self.workers, self.budget_bytes = workers, budget_bytes
        self.shares = NodeShares(self.functions.options)
        # the link
        self.session = AgentSession(rng, journal.recovered.epoch, now_us)
        self.refused: Refused | None = None
        self.draining = False  # no task begins any more; those that run end
        self.server = ""
        self._target = Connect()  # where it dials next
        # credit, of this session
        self.received = self.granted = 0
        self._output_allowance, self._output_us = float(OUTPUT_RATE), now_us
        self.no_workers = ""  # why no worker can run a task; empty if one can
        self._full = self._told_full = ""  # why no tasks are taken; what the server knows of it
        self._rewrite_us = 0  # not before, after one that failed

    # ------------------------------------------------------------ frames of the bridge

    def on_message(self, parts: list[bytes], now_us: int) -> None:
        """Apply a message of the bridge.

        Raises Undecodable; the caller then calls `disconnect`.
        """
        self.now_us = max(self.now_us, now_us)
        envelope, body = bridge.decode_from_bridge(parts)
        session = self.session
        if envelope.session != session.number or session.phase is SessionPhase.DISCONNECTED or self.refused:
            return  # stale
        if envelope.epoch < session.epoch:
            return self._redial("another server, with a newer claim, acts for this endpoint")
        message = envelope.message
        match message:
            case bridge.Reset():
                session.raise_number(message.above)
                return self._hello()
            case bridge.Redirect():
                return self._on_redirect(message)
            case bridge.Refuse():
                return self._on_refuse(message)
        if envelope.n < session.expect:
            return  # a double
        if envelope.n > session.expect:
            return self._hello()  # something was lost
        session.on_received(self.now_us)
        if session.phase is SessionPhase.HANDSHAKE:
            if isinstance(message, bridge.Welcome):
                self._on_welcome(envelope.epoch, message)
            return
        self._on_message(message, body)

    def _on_message(self, message: bridge.FromBridge, body: bytes) -> None:
        match message:
            case bridge.Dispatch():
                self._on_dispatch(message, body)
            case bridge.Ack():
                self.outbox.on_ack(message.seq)
            case bridge.CancelTasks():
                self.cancel(set(bridge.unpack_ids(body)), message.why)
            case bridge.Recall():
                self.recall(set(bridge.unpack_ids(body)), message.running)
            case bridge.BlobPart():
                self._fetcher.on_part(message, body, self.now_us)
            case bridge.UploadAck():
                self.outbox.on_upload_ack(message)
            case bridge.Welcome():
                self._remember_servers(message)
            case bridge.Heartbeat():
                self.server_clock.measure(message.at_us, self.now_us)

    def _on_welcome(self, epoch: int, welcome: bridge.Welcome) -> None:
        if epoch > self.session.epoch:
            self.session.epoch = epoch
            self._journal.epoch(epoch)
        self.session.on_welcome()
        self.prefetch.by_function = welcome.by_function
        self.server_clock.measure(welcome.at_us, self.now_us)
        self.server = welcome.server
        self._remember_servers(welcome)
        named = len(self.outbox.spool)
        self.outbox.new_session(welcome.durable_seq)
        self._fetcher.new_session()
        if len(self.outbox.spool) < named:
            # The inventory named tasks whose results are durable already. The bridge would wait for
            # them for ever and never send their retries. So send the inventory again.
            return self._hello()
        self._log(f"connected to {welcome.server} (oncue {welcome.server_version})")

    def _remember_servers(self, welcome: bridge.Welcome) -> None:
        if welcome.servers:
            self._out.append(RememberServers(welcome.servers))

    def _on_redirect(self, redirect: bridge.Redirect) -> None:
        self.session.on_redirect(self.now_us, bool(redirect.bridge))
        self._target = Connect(redirect.bridge, redirect.server_key)
        self._set_away(redirect.why)

    def _on_refuse(self, refuse: bridge.Refuse) -> None:
        if refuse.code == "stale-epoch":
            return self._redial(refuse.message)
        what = f"the server refused this endpoint: {refuse.message}"
        self.refused = Refused(what, remedy=refuse.remedy, reason=refuse.code)
        self._set_away(refuse.message)

    def _on_dispatch(self, message: bridge.Dispatch, body: bytes) -> None:
        tasks = decode(list[TaskRecord], body)
        ids = [t.id for t in tasks]
        if len(tasks) != message.count or sum(map(len, ids)) != bridge.ID_BYTES * len(ids):
            raise Undecodable("a dispatch with other tasks than it announces")
        self.received += message.count
        if not self.queue.held.keys().isdisjoint(ids):
            # The inventory named the others, so the bridge knows that they are held.
            tasks = [t for t in tasks if t.id not in self.queue.held]
            body = encode(tasks)
        if not tasks:
            return
        self._accept(message, tasks, body)

    # ------------------------------------------------------------ reports

    def on_started(self, tasks: Sequence[tuple[bytes, int, int]], worker: str = "") -> None:
        """Report (id, attempt, started_us) of tasks that run for over a second."""
        if tasks:
            self.prefetch.runs_long()
            self._report(Started(VERSION, self.identity.endpoint, tuple(tasks), worker))

    def on_output(self, task_id: bytes, attempt: int, offset: int, text: bytes) -> None:
        """Report output of a running task, as far as OUTPUT_RATE allows."""
        passed = (self.now_us - self._output_us) / 1e6
        self._output_us = self.now_us
        self._output_allowance = min(OUTPUT_RATE, self._output_allowance + passed * OUTPUT_RATE) - len(text)
        if self._output_allowance >= 0:
            self._report(Output(VERSION, self.identity.endpoint, task_id, attempt, offset, text))
        else:
            self._output_allowance += len(text)

    def report_usage(self, pool: WorkerStates, machine: MachineUse, blocks: BlocksUsage | None = None) -> None:
        """Report workers, and the machine's load and memory. Called every few seconds."""
        i = self.identity
        spooled = sum(n.count for n in self.outbox.spool.values())
        queued = len(self.queue.held) - self.running
        report = Usage(
            VERSION, i.endpoint, self.now_us, self.workers, pool.busy, queued, spooled, i.host, machine.load,
            machine.own_bytes, i.version, i.python, idle=max(0, pool.ready - pool.busy),
            starting=max(0, pool.size - pool.ready), cores=machine.cores, machine_bytes=machine.memory_bytes,
            used_bytes=machine.used_bytes,
        )  # fmt: skip
        if blocks is not None:
            report = msgspec.structs.replace(report, **msgspec.structs.asdict(blocks))  # cores ... of its nodes
        self._report(report)

    # ------------------------------------------------------------ turns

    def turn(self, now_us: int, room: int, chunk_size: Callable[[str], int]) -> list[Effect]:
        """Return the effects of the inputs since the last turn.

        `room`: chunks that the workers accept now. `chunk_size`: tasks that a chunk of a function
        should hold.
        """
        self.now_us = max(self.now_us, now_us)
        self._tick_session()
        self._expire()
        self._settle_unclaimed()
        self._assign(0 if self.draining else room, chunk_size)
        rewrite = self.now_us >= self._rewrite_us and self._journal.wants_rewrite(self.live_bytes)
        # If nothing runs, no further result can join the frame: send it at once.
        self.outbox.flush(self.now_us, force=self.running == 0 or self.stopping or rewrite)
        if self.phase is SessionPhase.CONNECTED:
            self._send_results()
            for want in self._fetcher.next_requests(self.now_us):
                self._send(want)
            for put, body in self.outbox.next_parts(self.now_us):
                self._send(put, body)
            self._grant()
        if rewrite and not self._journal.rewrite(self._all_records(self.session.epoch)):
            self._rewrite_us = self.now_us + REWRITE_AGAIN_US
        self._write()
        self._arguments.drop(self.now_us, self.outbox.uploads)
        out, self._out = self._out, []
        return out

    def unclaimed(self) -> list[tuple[bytes, Call]]:
        """Return the tasks that no node has claimed, with their calls."""
        return self._unclaimed.calls()

    def _settle_unclaimed(self) -> None:
        """Decide on started tasks that no node has claimed, once that can be done."""
        if self._unclaimed:
            if self.now_us > self._unclaimed.until_us:
                self.lose_unclaimed(f"no node that runs it came back in {CLAIM_US / 1e6:g} s")
            elif self.nodes.awaited or not self.nodes.complete:
                return
            elif self.nodes.missed:
                self.lose_unclaimed("a node that may have run it was gone")
            else:  # they did not reach a node
                self.requeue([t for _, tasks in self._unclaimed.drain() for t in tasks])
        self.nodes.settle()

    def _send_results(self) -> None:
        for entry in self.outbox.unsent():
            granted = self.granted = self._credit_total()
            share = self.shares.of(entry.call)
            results = bridge.Results(entry.seq, entry.count, entry.call, entry.accepted_us, granted, share)
            self._send(results, entry.body)

    def _credit_total(self) -> int:
        """Return the total credit to grant. It never falls."""
        if self.stopping or self.draining or self._full:
            return self.granted
        return max(self.granted, self.received + max(0, self.prefetch.capacity - len(self.queue.held)))

    def _grant(self) -> None:
        total = self._credit_total()
        spare = self.granted - self.received  # granted and not used yet
        if total > self.granted and (spare <= 0 or total - self.granted >= max(1, self.prefetch.capacity // 4)):
            self.granted = total
            self._send(bridge.Credit(total))

    @property
    def phase(self) -> SessionPhase:
        return self.session.phase

    def _write(self) -> None:
        """Write the journal. A full disk or spool stops new credit."""
        journal = self._journal
        full = ""
        if not journal.write():
            full = f"the journal could not be written: {journal.problem}; free space there"
        elif self.live_bytes > self.budget_bytes:
            full = f"the spool is full (more than {self.budget_bytes:,} bytes)"
        elif self.no_workers:
            full = self.no_workers
        if full != self._full:
            self._log(f"{full}; no new tasks are taken" if full else "new tasks are taken again")
            self._full = full
        if full != self._told_full and self.phase is SessionPhase.CONNECTED:
            self._told_full = full
            self._send(bridge.Credit(self.granted, full[:WHY_CHARS]))

    # ------------------------------------------------------------ the link

    def _tick_session(self) -> None:
        if self.refused:
            return
        session = self.session
        if session.phase is SessionPhase.DISCONNECTED:
            if self.now_us >= session.connect_us and not self.stopping:
                self._out.append(self._target)
                self._target = Connect()
                self._hello()
        elif session.timed_out(self.now_us):
            self._redial(f"the server was silent for {bridge.SILENCE_MS / 1000:g} s")
        elif session.beat_due(self.now_us):
            if session.phase is SessionPhase.HANDSHAKE:
                self._hello()  # the last one may be lost
            else:
                self._send(bridge.Heartbeat(self.now_us))

    def _hello(self) -> None:
        """Begin a session: send our identity and the inventory of tasks held."""
        self.session.begin(self.now_us)
        self.received, self.granted, self._told_full = 0, 0, ""
        held = [(task_id, g.attempt) for task_id, g in self.queue.held.items()] + self.outbox.inventory()
        i = self.identity
        self._send(
            bridge.Hello(
                bridge.PROTOCOL, i.version, i.python, i.host, i.pid, i.boot, self._journal.identity, self.workers,
                len(held), self.session.epoch, self.now_us, i.after,
                max(1, self.now_us - i.began_us) if i.began_us else 0,
            )
        )  # fmt: skip
        for at in range(0, len(held), INVENTORY_TASKS):
            part = held[at : at + INVENTORY_TASKS]
            self._send(bridge.Inventory(at + len(part) == len(held)), bridge.pack_inventory(part))

    def disconnect(self, why: str, now_us: int) -> None:
        """Drop a connection that the caller found broken; it is dialled again."""
        self.now_us = max(self.now_us, now_us)
        if self.phase is not SessionPhase.DISCONNECTED:
            self._redial(why)

    def _redial(self, why: str) -> None:
        self.session.back_off(self.now_us)
        self._set_away(why)

    def _set_away(self, why: str) -> None:
        if self.phase is SessionPhase.CONNECTED or self.refused or self.session.failures == 1:
            self._log(f"not connected: {why}")
        self.session.phase = SessionPhase.DISCONNECTED

    def stop(self, why: str) -> None:
        """Accept no new tasks; results are still sent. `end_session` follows."""
        self.stopping = True
        self._log(f"stopping: {why}")

    def end_session(self, why: str) -> None:
        """Send Bye. Tasks that are held stay in the journal."""
        if self.phase is SessionPhase.CONNECTED:
            self._send(bridge.Bye(why))
        self.session.phase = SessionPhase.DISCONNECTED

    def next_wake_us(self) -> int:
        """Return the latest time at which `turn` must be called, unix µs."""
        if self.refused:
            return self.now_us + SILENCE_US
        if self.phase is SessionPhase.DISCONNECTED:
            wake = max(self.session.connect_us, self.now_us) if not self.stopping else self.now_us + SILENCE_US
        else:
            wake = self.session.wake_us()
        if self._expiry_us:
            wake = min(wake, self._expiry_due_us())
        if self._unclaimed:
            wake = min(wake, self._unclaimed.until_us + 1)
        due = self.outbox.due_us()
        return wake if due is None else min(wake, due)

    def _report(self, report: Report) -> None:
        if self.phase is SessionPhase.CONNECTED:
            self._send(bridge.ReportFrame(), encode(report))

    def _send(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        self._out.append(self.session.number_message(message, body, self.now_us))
