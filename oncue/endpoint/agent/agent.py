"""The agent's state machine, sans-IO: frames, ticks and what the workers did in; effects out (effects.py).

    Dispatch ──► journal ──► shelf ──turn: room at the workers──► Run
    Results ◄── journal ◄── outbox ◄── ended(...)
    FetchPart, BlobPart: fetcher (function bodies, large arguments)   UploadPart, UploadAck: outbox (large results)

After any inputs the rim calls `turn`, and carries out the effects, in order. The journal is written in `turn`, before the
effects leave it: what the world sees of a task, the journal knew before. Without a link (session.py) the agent goes on with
what it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from oncue.endpoint.agent import journal
from oncue.endpoint.agent.effects import Dial, Effect, RememberServers
from oncue.endpoint.agent.fetcher import BlobCache
from oncue.endpoint.agent.held_tasks import HeldTasks
from oncue.endpoint.agent.session import SILENCE_US, Phase, Session
from oncue.errors import Refused
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, Output, Report, Started, TaskRecord, Usage

INVENTORY_TASKS = 50_000  # named in one message
OUTPUT_RATE = 256 * 1024  # bytes a second of running tasks' output; what is more is in the outcome


class Identity(msgspec.Struct, frozen=True):
    """Who this agent is."""

    endpoint: str
    version: str
    python: str
    host: str
    pid: int
    boot: bytes  # 8 random bytes a start


class Agent(HeldTasks):
    def __init__(
        self,
        identity: Identity,
        journal: journal.Journal,
        cabinet: BlobCache,
        rng: random.Random,
        workers: int,
        now_us: int,
        *,
        budget_bytes: int = 256 << 20,
    ) -> None:
        super().__init__(journal, cabinet, workers, now_us)
        self.identity = identity
        self.workers, self.budget_bytes = workers, budget_bytes
        # the link
        self.link = Session(rng, journal.recovered.epoch, now_us)
        self.refused: Refused | None = None
        self.server = ""
        self._target = Dial()  # where it dials next
        # credit, of this session
        self.received = self.granted = 0
        self._output_allowance, self._output_us = float(OUTPUT_RATE), now_us
        self._full = ""

    # ------------------------------------------------------------ frames of the bridge

    def frame(self, parts: list[bytes], now_us: int) -> None:
        """Raises Undecodable; the rim then says so and calls `cut`."""
        self.now_us = max(self.now_us, now_us)
        envelope, body = bridge.decode_from_bridge(parts)
        link = self.link
        if envelope.session != link.number or link.phase is Phase.AWAY or self.refused:
            return  # stale
        if envelope.epoch < link.epoch:
            return self._redial("another server, with a newer claim, acts for this endpoint")
        message = envelope.message
        if isinstance(message, bridge.Reset):
            return self._hello()
        if isinstance(message, bridge.Redirect):
            return self._on_redirect(message)
        if isinstance(message, bridge.Refuse):
            return self._on_refuse(message)
        if envelope.n < link.expect:
            return  # a double
        if envelope.n > link.expect:
            return self._hello()  # something was lost
        link.heard(self.now_us)
        if link.phase is Phase.GREETING:
            if isinstance(message, bridge.Welcome):
                self._on_welcome(envelope.epoch, message)
            return
        self._on_message(message, body)

    def _on_message(self, message: bridge.FromBridge, body: bytes) -> None:
        if isinstance(message, bridge.Dispatch):
            self._on_dispatch(message, body)
        elif isinstance(message, bridge.Ack):
            self.outbox.ack(message.seq)
        elif isinstance(message, bridge.CancelTasks):
            step = bridge.ID_BYTES
            self.cancel({body[i : i + step] for i in range(0, len(body), step)}, message.why)
        elif isinstance(message, bridge.BlobPart):
            self._fetching.part(message, body, self.now_us)
        elif isinstance(message, bridge.UploadAck):
            self.outbox.put_ack(message)
        elif isinstance(message, bridge.Welcome):
            self._learn(message)

    def _on_welcome(self, epoch: int, welcome: bridge.Welcome) -> None:
        if epoch > self.link.epoch:
            self.link.epoch = epoch
            self._journal.epoch(epoch)
        self.link.welcomed()
        self.server = welcome.server
        self._learn(welcome)
        named = len(self.outbox.spool)
        self.outbox.new_session(welcome.durable_seq)
        self._fetching.new_session()
        if len(self.outbox.spool) < named:
            # The inventory named tasks whose ends are durable, and the bridge now waits for ends that it will not see
            # again: a retry of one would never be sent. So say what is held once more.
            return self._hello()
        self._say(f"connected to {welcome.server} (oncue {welcome.server_version})")

    def _learn(self, welcome: bridge.Welcome) -> None:
        if welcome.servers:
            self._out.append(RememberServers(welcome.servers))

    def _on_redirect(self, redirect: bridge.Redirect) -> None:
        self.link.redirected(self.now_us, bool(redirect.bridge))
        self._target = Dial(redirect.bridge, redirect.server_key)
        self._away(redirect.why)

    def _on_refuse(self, refuse: bridge.Refuse) -> None:
        if refuse.code == "stale-epoch":
            return self._redial(refuse.message)
        what = f"the server refused this endpoint: {refuse.message}"
        self.refused = Refused(what, remedy=refuse.remedy, reason=refuse.code)
        self._away(refuse.message)

    def _on_dispatch(self, message: bridge.Dispatch, body: bytes) -> None:
        self.received += message.count
        tasks = decode(list[TaskRecord], body)
        if not self.shelf.held.keys().isdisjoint([t.id for t in tasks]):
            tasks = [t for t in tasks if t.id not in self.shelf.held]  # the bridge knows that we have them
            body = encode(tasks)
        if not tasks:
            return
        self._take_in(message, tasks, body)

    # ------------------------------------------------------------ reports

    def started(self, tasks: Sequence[tuple[bytes, int, int]], worker: str = "") -> None:
        """(id, attempt, started_us) of tasks that run for over a second."""
        if tasks:
            self.appetite.runs_long()
            self._report(Started(VERSION, self.identity.endpoint, tuple(tasks), worker))

    def output(self, task_id: bytes, attempt: int, offset: int, text: bytes) -> None:
        """What a running task has printed; reported as far as the rate allows."""
        passed = (self.now_us - self._output_us) / 1e6
        self._output_us = self.now_us
        self._output_allowance = min(OUTPUT_RATE, self._output_allowance + passed * OUTPUT_RATE) - len(text)
        if self._output_allowance >= 0:
            self._report(Output(VERSION, self.identity.endpoint, task_id, attempt, offset, text))
        else:
            self._output_allowance += len(text)

    def usage(self, busy: int, load: float, memory_bytes: int) -> None:
        """Every few seconds: what the machine does."""
        i = self.identity
        spooled = sum(n.count for n in self.outbox.spool.values())
        queued = len(self.shelf.held) - self.running
        self._report(
            Usage(
                VERSION, i.endpoint, self.now_us, self.workers, busy, queued, spooled, i.host, load, memory_bytes,
                i.version, i.python,
            )
        )  # fmt: skip

    # ------------------------------------------------------------ turns

    def turn(self, now_us: int, room: int, chunk_size: Callable[[str], int]) -> list[Effect]:
        """What follows from the inputs since the last turn. `room`: chunks that the workers want now; `chunk_size`:
        how many tasks of a function a chunk should have."""
        self.now_us = max(self.now_us, now_us)
        self._tick_link()
        self._expire()
        self._hand_out(room, chunk_size)
        rewrite = self._journal.wants_rewrite(self.live_bytes)
        # When nothing runs, no company is on its way: what ended goes at once.
        self.outbox.flush(self.now_us, force=self.running == 0 or self.stopping or rewrite)
        if self.phase is Phase.READY:
            self._send_results()
            for want in self._fetching.asks(self.now_us):
                self._send(want)
            for put, body in self.outbox.puts(self.now_us):
                self._send(put, body)
            self._grant()
        if rewrite:
            self._journal.rewrite(self._all_records(self.link.epoch))
        self._write()
        self._arguments.drop(self.now_us, self.outbox.uploads)
        out, self._out = self._out, []
        return out

    def _send_results(self) -> None:
        for entry in self.outbox.unsent():
            granted = self.granted = self._wish()
            self._send(bridge.Results(entry.seq, entry.count, entry.call, entry.accepted_us, granted), entry.body)

    def _wish(self) -> int:
        """The total to grant: never less than before."""
        if self.stopping or self._full:
            return self.granted
        return max(self.granted, self.received + max(0, self.appetite.capacity - len(self.shelf.held)))

    def _grant(self) -> None:
        wish = self._wish()
        spare = self.granted - self.received  # granted and not used yet
        if wish > self.granted and (spare <= 0 or wish - self.granted >= max(1, self.appetite.capacity // 4)):
            self.granted = wish
            self._send(bridge.Credit(wish))

    @property
    def phase(self) -> Phase:
        return self.link.phase

    def _write(self) -> None:
        """Journal first. A disk or a spool that is full grants no credit."""
        journal = self._journal
        full = ""
        if not journal.write():
            full = f"the journal could not be written: {journal.problem}"
        elif self.live_bytes > self.budget_bytes:
            full = f"the spool is full ({self.live_bytes:,} bytes)"
        if full != self._full:
            self._say(f"{full}; no new tasks are taken" if full else "new tasks are taken again")
            self._full = full

    # ------------------------------------------------------------ the link

    def _tick_link(self) -> None:
        if self.refused:
            return
        link = self.link
        if link.phase is Phase.AWAY:
            if self.now_us >= link.dial_us and not self.stopping:
                self._out.append(self._target)
                self._target = Dial()
                self._hello()
        elif link.silent(self.now_us):
            self._redial(f"not a word from the server for {bridge.SILENCE_MS / 1000:g} s")
        elif link.owes_beat(self.now_us):
            if link.phase is Phase.GREETING:
                self._hello()  # the last one may be lost
            else:
                self._send(bridge.Heartbeat(self.now_us))

    def _hello(self) -> None:
        """A new session: who we are, and what we hold."""
        self.link.begin(self.now_us)
        self.received = self.granted = 0
        held = [(task_id, g.attempt) for task_id, g in self.shelf.held.items()] + self.outbox.held()
        i = self.identity
        self._send(
            bridge.Hello(
                bridge.PROTOCOL, i.version, i.python, i.host, i.pid, i.boot, self._journal.identity, self.workers,
                len(held), self.link.epoch,
            )
        )  # fmt: skip
        for at in range(0, len(held), INVENTORY_TASKS):
            part = held[at : at + INVENTORY_TASKS]
            self._send(bridge.Inventory(at + len(part) == len(held)), bridge.pack_inventory(part))

    def cut(self, why: str, now_us: int) -> None:
        """The rim's word that the link is no good: it is dialled anew."""
        self.now_us = max(self.now_us, now_us)
        if self.phase is not Phase.AWAY:
            self._redial(why)

    def _redial(self, why: str) -> None:
        self.link.put_off(self.now_us)
        self._away(why)

    def _away(self, why: str) -> None:
        if self.phase is Phase.READY or self.refused or self.link.failures == 1:
            self._say(f"not connected: {why}")
        self.link.phase = Phase.AWAY

    def stop(self, why: str) -> None:
        """Take nothing new; what ends is still sent. `bye` when all is done."""
        self.stopping = True
        self._say(f"stopping: {why}")

    def bye(self, why: str) -> None:
        """The last word: what is held stays in the journal."""
        if self.phase is Phase.READY:
            self._send(bridge.Bye(why))
        self.link.phase = Phase.AWAY

    def next_wake_us(self) -> int:
        """When `turn` should be called at the latest."""
        if self.refused:
            return self.now_us + SILENCE_US
        if self.phase is Phase.AWAY:
            wake = max(self.link.dial_us, self.now_us) if not self.stopping else self.now_us + SILENCE_US
        else:
            wake = self.link.wake_us()
        if self._expiry_us:
            wake = min(wake, self._expiry_due_us())
        due = self.outbox.due_us()
        return wake if due is None else min(wake, due)

    def _report(self, report: Report) -> None:
        if self.phase is Phase.READY:
            self._send(bridge.ReportFrame(), encode(report))

    def _send(self, message: bridge.FromAgent, body: bytes = b"") -> None:
        self._out.append(self.link.frame(message, body, self.now_us))
