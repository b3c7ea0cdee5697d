"""The agent's state machine, sans-IO: frames, ticks and what the workers did in; effects out (effects.py).

    Dispatch ──► journal ──► shelf ──turn: room at the workers──► Run
    Results ◄── journal ◄── outbox ◄── ended(...)
    Want, Part: fetching (function bodies, large arguments)        Put, PutAck: outbox (large results)

After any inputs the rim calls `turn`, and carries out the effects, in order. The journal is written in `turn`, before the
effects leave it: what the world sees of a task, the journal knew before. Without a link (session.py) the agent goes on with
what it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from oncue import wire
from oncue.endpoint import spool
from oncue.endpoint.arguments import Arguments
from oncue.endpoint.bodies import Bodies
from oncue.endpoint.credit import Appetite
from oncue.endpoint.effects import CancelRun, Dial, Effect, Run, Say
from oncue.endpoint.fetching import Cabinet, Fetch, Fetching
from oncue.endpoint.outbox import Outbox
from oncue.endpoint.session import SILENCE_US, Phase, Session
from oncue.endpoint.shelf import COST_OF_TASK, Group, Shelf
from oncue.errors import Refused, Undecodable
from oncue.messages import (
    CANCELLED,
    ERROR,
    EXPIRED,
    LOST,
    VERSION,
    Call,
    Ended,
    Failure,
    Output,
    Report,
    Started,
    Task,
    Usage,
    decode,
    encode,
)
from oncue.payload import REF, ref_of

INVENTORY_TASKS = 50_000  # named in one message
OUTPUT_RATE = 256 * 1024  # bytes a second of running tasks' output; what is more is in the outcome
EXPIRY_STEP_US = 1_000_000  # between two looks at all that waits


class Identity(msgspec.Struct, frozen=True):
    """Who this agent is."""

    endpoint: str
    version: str
    python: str
    host: str
    pid: int
    boot: bytes  # 8 random bytes a start


class Agent:
    def __init__(
        self,
        identity: Identity,
        journal: spool.Journal,
        cabinet: Cabinet,
        rng: random.Random,
        workers: int,
        now_us: int,
        *,
        budget_bytes: int = 256 << 20,
    ) -> None:
        self.identity, self._journal, self._cabinet = identity, journal, cabinet
        self.workers, self.budget_bytes = workers, budget_bytes
        self.now_us = now_us
        self._out: list[Effect] = []
        # the link
        self.link = Session(rng, journal.recovered.epoch, now_us)
        self.refused: Refused | None = None
        self.stopping = False
        self.server = ""
        # credit, of this session
        self.received = self.granted = 0
        self.appetite = Appetite(workers)
        # tasks
        self.shelf = Shelf()
        self.outbox = Outbox(journal, cabinet, self._drop_blob_of_result)
        self._fetching = Fetching(cabinet, self._arrived, self._failed)
        self._bodies = Bodies(cabinet)
        self._arguments = Arguments(cabinet)
        self.running = 0
        self._expiry_us = self._expired_us = 0  # when something that waits expires (0: nothing does); the last look
        self._output_allowance, self._output_us = float(OUTPUT_RATE), now_us
        self._full = ""
        self._recover()

    # ------------------------------------------------------------ after a start

    def _recover(self) -> None:
        """Queued tasks go on; started ones that did not end are lost; spooled results are there already."""
        found = self._journal.recovered
        for problem in found.problems:
            self._say(f"the journal was damaged: {problem}")
        why = encode(Failure("oncue.TaskLost", "the agent was killed while it ran"))
        for held in found.held:
            size = sum(len(t.args) + COST_OF_TASK for t in held.tasks)
            group = Group(held.call, decode(Call, held.call), held.attempt, held.accepted_us, held.tasks, size)
            self.shelf.receive(group)
            lost = [t for t in held.tasks if t.id in held.started]
            if lost:
                self._end(group, lost, LOST, why)
            self._place(group, [t for t in held.tasks if t.id not in held.started])
        used = self._arguments.users.keys() | self.outbox.uploads.keys()
        for sha in self._cabinet.blobs():
            if sha not in used:
                self._cabinet.drop_blob(sha)
        found.held, found.kept, found.spooled = [], [], []  # not needed any more

    # ------------------------------------------------------------ frames of the bridge

    def frame(self, parts: list[bytes], now_us: int) -> None:
        """Raises Undecodable; the rim then says so and calls `cut`."""
        self.now_us = max(self.now_us, now_us)
        envelope, body = wire.decode_from_bridge(parts)
        link = self.link
        if envelope.session != link.number or link.phase is Phase.AWAY or self.refused:
            return  # stale
        if envelope.epoch < link.epoch:
            return self._redial("another server, with a newer claim, acts for this endpoint")
        message = envelope.message
        if isinstance(message, wire.Reset):
            return self._hello()
        if isinstance(message, wire.Refuse):
            return self._on_refuse(message)
        if envelope.n < link.expect:
            return  # a double
        if envelope.n > link.expect:
            return self._hello()  # something was lost
        link.heard(self.now_us)
        if link.phase is Phase.GREETING:
            if isinstance(message, wire.Welcome):
                self._on_welcome(envelope.epoch, message)
            return
        self._on_message(message, body)

    def _on_message(self, message: wire.FromBridge, body: bytes) -> None:
        if isinstance(message, wire.Dispatch):
            self._on_dispatch(message, body)
        elif isinstance(message, wire.Ack):
            self.outbox.ack(message.seq)
        elif isinstance(message, wire.CancelTasks):
            step = wire.ID_BYTES
            self.cancel({body[i : i + step] for i in range(0, len(body), step)}, message.why)
        elif isinstance(message, wire.Part):
            self._fetching.part(message, body, self.now_us)
        elif isinstance(message, wire.PutAck):
            self.outbox.put_ack(message)

    def _on_welcome(self, epoch: int, welcome: wire.Welcome) -> None:
        if epoch > self.link.epoch:
            self.link.epoch = epoch
            self._journal.epoch(epoch)
        self.link.welcomed()
        self.server = welcome.server
        named = len(self.outbox.spool)
        self.outbox.new_session(welcome.durable_seq)
        self._fetching.new_session()
        if len(self.outbox.spool) < named:
            # The inventory named tasks whose ends are durable, and the bridge now waits for ends that it will not see
            # again: a retry of one would never be sent. So say what is held once more.
            return self._hello()
        self._say(f"connected to {welcome.server} (oncue {welcome.server_version})")

    def _on_refuse(self, refuse: wire.Refuse) -> None:
        if refuse.code == "stale-epoch":
            return self._redial(refuse.message)
        self.refused = Refused(f"the server refused this endpoint: {refuse.message}", remedy=refuse.remedy)
        self._away(refuse.message)

    def _on_dispatch(self, message: wire.Dispatch, body: bytes) -> None:
        self.received += message.count
        tasks = decode(list[Task], body)
        if not self.shelf.held.keys().isdisjoint([t.id for t in tasks]):
            tasks = [t for t in tasks if t.id not in self.shelf.held]  # the bridge knows that we have them
            body = encode(tasks)
        if not tasks:
            return
        call = decode(Call, message.call)
        group = Group(
            message.call, call, message.attempt, message.accepted_us, tasks, len(body) + COST_OF_TASK * len(tasks)
        )
        self._journal.received(message.call, message.attempt, message.accepted_us, body)
        self.shelf.receive(group)
        self._place(group, tasks)

    # ------------------------------------------------------------ what a task needs before it can run

    def _place(self, group: Group, tasks: list[Task]) -> None:
        """Into the queue, or aside for its function's body or a large argument."""
        for t in tasks:
            if t.args[:1] == REF:
                tasks = [t for t in tasks if not self._needs_blob(group, t)]
                break
        self._note_expiry(group.call.expires_us)
        if tasks:
            function = group.call.function
            here = self._bodies.get(function) is not None
            self.shelf.put(group, tasks, here=here)
            if not here:
                self._fetching.want(function, blob=False)

    def _needs_blob(self, group: Group, task: Task) -> bool:
        if task.args[:1] != REF:
            return False
        try:
            ref = ref_of(task.args)
        except Undecodable as e:
            self._end(group, [task], ERROR, encode(Failure("oncue.Undecodable", e.message)))
            return True
        if ref is None:
            return False
        if not self._arguments.need(group, task, ref.sha256):
            return False
        self._fetching.want(ref.sha256, blob=True)
        return True

    def _arrived(self, fetch: Fetch, body: bytes) -> None:
        if not fetch.blob:
            try:
                self._bodies.keep(fetch.sha256, body)
            except OSError as e:
                self._say(f"a function could not be kept on disk: {e.strerror or e}")
            self.shelf.arrived(fetch.sha256)
            return
        for group, task in self._arguments.arrived(fetch.sha256):
            here = self._bodies.get(group.call.function) is not None
            self.shelf.put(group, [task], here=here)
            if not here:
                self._fetching.want(group.call.function, blob=False)

    def _failed(self, fetch: Fetch, why: str) -> None:
        if fetch.blob:
            failure = encode(Failure("oncue.BlobMissing", f"its large arguments could not be fetched: {why}"))
            for group, task in self._arguments.arrived(fetch.sha256):
                self._end(group, [task], ERROR, failure)
            return
        remedy = "register the function again, and run the task anew"
        failure = encode(Failure("oncue.FunctionError", f"the function could not be fetched: {why}", "", remedy))
        for group, tasks in self.shelf.fail(fetch.sha256):
            self._end(group, tasks, ERROR, failure)

    # ------------------------------------------------------------ what the workers did

    def ended(self, ends: Sequence[Ended]) -> None:
        """Attempts that ended at the workers: as they came, in chunks."""
        if not ends:
            return
        took = ends[-1].ended_us - ends[0].started_us if ends[0].started_us else 0
        if took >= 0 and ends[0].started_us:
            self.appetite.measured(len(ends), took)
        shelf = self.shelf
        current: Group | None = None
        mine: list[Ended] = []
        for e in ends:
            group = shelf.ended(e.id)
            if group is None:
                continue  # known already
            self.running -= 1
            if group is not current:
                if mine and current is not None:
                    self.outbox.add((current.call_raw, current.accepted_us), mine)
                current, mine = group, []
            mine.append(e)
        if mine and current is not None:
            self.outbox.add((current.call_raw, current.accepted_us), mine)
        self._arguments.release((e.id for e in ends), self.now_us)

    def requeue(self, tasks: Iterable[Task]) -> None:
        """Tasks that the workers give back: they never started, or nobody is to blame for them."""
        by_group: dict[int, tuple[Group, list[Task]]] = {}
        for t in tasks:
            group = self.shelf.held.get(t.id)
            if group is not None:
                by_group.setdefault(id(group), (group, []))[1].append(t)
        for group, given in by_group.values():
            self.running -= len(given)
            self._journal.requeued(group.attempt, b"".join([t.id for t in given]))
            here = self._bodies.get(group.call.function) is not None
            self.shelf.put(group, given, here=here, first=True)
            self._note_expiry(group.call.expires_us)
            if not here:
                self._fetching.want(group.call.function, blob=False)

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

    # ------------------------------------------------------------ cancel and ends without a worker

    def cancel(self, ids: set[bytes], why: str = "") -> None:
        """Those that wait end at once; those at workers are asked for."""
        self._withdraw(ids, CANCELLED, encode(Failure("oncue.TaskCancelled", why or "cancelled")))
        running = frozenset(i for i in ids if i in self.shelf.held)
        if running:
            self._out.append(CancelRun(running))

    def _withdraw(self, ids: set[bytes], status: int, failure: bytes) -> None:
        """End those of them that wait; they are taken out of `ids`."""
        for group, task in self.shelf.remove(ids):
            ids.discard(task.id)
            self._end(group, [task], status, failure)
        waited, idle = self._arguments.remove(ids)
        for group, task in waited:
            ids.discard(task.id)
            self._end(group, [task], status, failure)
        for sha256 in idle:
            self._fetching.forget(sha256)

    def _note_expiry(self, at_us: int) -> None:
        if at_us:
            self._expiry_us = min(self._expiry_us or at_us, at_us)

    def _expiry_due_us(self) -> int:
        return max(self._expiry_us + 1, self._expired_us + EXPIRY_STEP_US)

    def _expire(self) -> None:
        """What waits past its expiry ends, though no worker is free to take it."""
        if not self._expiry_us or self.now_us < self._expiry_due_us():
            return
        self._expired_us = self.now_us
        due, self._expiry_us = self.shelf.expired(self.now_us)
        more, following = self._arguments.expired(self.now_us)
        due |= more
        self._note_expiry(following)
        if due:
            self._withdraw(
                due, EXPIRED, encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
            )

    def _end(self, group: Group, tasks: list[Task], status: int, failure: bytes) -> None:
        """Attempts that end here, without a worker."""
        for t in tasks:
            self.shelf.ended(t.id)
        ends = [
            Ended(t.id, group.attempt, status, 0, self.now_us, failure, b"", t.event, t.retry_of, t.mark_us)
            for t in tasks
        ]
        self.outbox.add((group.call_raw, group.accepted_us), ends)
        self._arguments.release((t.id for t in tasks), self.now_us)

    def _drop_blob_of_result(self, sha256: str) -> None:
        self._arguments.unneeded(sha256, self.now_us)

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
            self._journal.rewrite(self._all_records())
        self._write()
        self._arguments.drop(self.now_us, self.outbox.uploads)
        out, self._out = self._out, []
        return out

    def _hand_out(self, room: int, chunk_size: Callable[[str], int]) -> None:
        shelf = self.shelf
        while room > 0 and not self.stopping:
            function = shelf.next_function()
            if function is None:
                return
            body = self._bodies.get(function)
            if body is None:  # its file is gone: ask for it again
                for group, tasks in [shelf.take(function, 1 << 30)]:
                    shelf.put(group, tasks, here=False)
                self._fetching.want(function, blob=False)
                continue
            most = max(1, min(chunk_size(function), -(-shelf.queued // max(1, room))))
            group, tasks = shelf.take(function, most)
            if group.call.expires_us and self.now_us > group.call.expires_us:
                why = encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
                self._end(group, tasks, EXPIRED, why)
                continue
            self._journal.started(group.attempt, b"".join([t.id for t in tasks]))
            self.running += len(tasks)
            self._out.append(Run(function, body, group.call.timeout_ms, group.attempt, tasks))
            room -= 1

    def _send_results(self) -> None:
        for entry in self.outbox.unsent():
            granted = self.granted = self._wish()
            self._send(wire.Results(entry.seq, entry.count, entry.call, entry.accepted_us, granted), entry.body)

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
            self._send(wire.Credit(wish))

    @property
    def phase(self) -> Phase:
        return self.link.phase

    @property
    def live_bytes(self) -> int:
        return self.shelf.live_bytes + self.outbox.bytes

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

    def _all_records(self) -> list[bytes]:
        """All that the journal has to know, anew."""
        waiting = self.shelf.waiting()
        waiting |= self._arguments.waiting()
        held, records = self.shelf.held, [spool.pack(spool.EPOCH, self.link.epoch.to_bytes(8, "big"))]
        for g in self.shelf.groups():
            tasks = [t for t in g.tasks if held.get(t.id) is g]
            records.append(spool.pack(spool.RECEIVED, encode((g.call_raw, g.attempt, g.accepted_us, tasks))))
            started = b"".join([t.id for t in tasks if t.id not in waiting])
            if started:
                records.append(spool.pack(spool.STARTED, encode((g.attempt, started))))
        for spooled, frame in self.outbox.frames():
            records.append(spool.pack(spool.ENDED if spooled else spool.KEPT, encode(frame)))
        records.append(spool.pack(spool.ACKED, encode((self.outbox.acked_seq,))))
        return records

    # ------------------------------------------------------------ the link

    def _tick_link(self) -> None:
        if self.refused:
            return
        link = self.link
        if link.phase is Phase.AWAY:
            if self.now_us >= link.dial_us and not self.stopping:
                self._out.append(Dial())
                self._hello()
        elif link.silent(self.now_us):
            self._redial(f"not a word from the server for {wire.SILENCE_MS / 1000:g} s")
        elif link.owes_beat(self.now_us):
            if link.phase is Phase.GREETING:
                self._hello()  # the last one may be lost
            else:
                self._send(wire.Beat(self.now_us))

    def _hello(self) -> None:
        """A new session: who we are, and what we hold."""
        self.link.begin(self.now_us)
        self.received = self.granted = 0
        held = [(task_id, g.attempt) for task_id, g in self.shelf.held.items()] + self.outbox.held()
        i = self.identity
        self._send(
            wire.Hello(
                wire.PROTOCOL, i.version, i.python, i.host, i.pid, i.boot, self._journal.identity, self.workers,
                len(held), self.link.epoch,
            )
        )  # fmt: skip
        for at in range(0, len(held), INVENTORY_TASKS):
            part = held[at : at + INVENTORY_TASKS]
            self._send(wire.Inventory(at + len(part) == len(held)), wire.pack_held(part))

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
            self._send(wire.Bye(why))
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
            self._send(wire.ReportFrame(), encode(report))

    def _say(self, text: str) -> None:
        self._out.append(Say(text))

    def _send(self, message: wire.FromAgent, body: bytes = b"") -> None:
        self._out.append(self.link.frame(message, body, self.now_us))
