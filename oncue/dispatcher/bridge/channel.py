"""One endpoint's side of the bridge, sans-IO: frames, ticks, fresh tasks and durable-acks in; effects out.

    fresh, page ──► pending ──credit──► flight ──Results──► Store ──durable──► Ack
                      ▲                   │
                      └── to be retried ◄─┘

Nothing here is the truth: all of it can be lost and is rebuilt from the view and the agent's inventory. After each call
the rim carries out `drain()`, in order (effects.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    Effect,
    EndWaitingTasks,
    ForwardReport,
    LoadOpenTasks,
    PhaseChanged,
    ReadPart,
    SendFrame,
    StoreResults,
    WritePart,
)
from oncue.dispatcher.bridge.pending_tasks import PAGE, OpenTask, PendingTasks, TaskGroup
from oncue.lifecycle import retry_due
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import CANCELLED, EXPIRED, LOST, OK, VERSION, Call, Ended, Failure, TaskFrame, TaskRecord


class EndpointChannel:
    def __init__(
        self,
        endpoint: str,
        epoch: int,
        server: str,
        version: str,
        *,
        lost_after_ms: int = 0,
        budget_bytes: int = 64 << 20,
    ) -> None:
        self.endpoint, self.epoch, self.server, self.version = endpoint, epoch, server, version
        self.lost_after_ms = lost_after_ms
        self.servers: tuple[tuple[str, str], ...] = ()  # that an agent may dial: (address, key)
        self._announced_servers: tuple[tuple[str, str], ...] = ()
        self.now_us = 0
        self._out: list[Effect] = []
        # the agent
        self.phase = ChannelPhase.AWAY
        self.since_us = 0
        self.hello: bridge.Hello | None = None
        self.refused = ""
        self.session = 0
        self._expect = self._next = 0  # numbers: of the agent's next message, of ours
        self._received_us = self._sent_us = 0
        self._inventory: list[tuple[bytes, int]] = []
        self.granted = self.sent = 0  # tasks, since the session's start
        # tasks
        self.pending = PendingTasks(
            lambda task_id: self.at_agent(task_id) or task_id in self._appending_ids, budget_bytes
        )
        self.in_flight: dict[bytes, TaskGroup] = {}
        self.inventory_known = False  # whether an agent has said what it holds
        self.held: dict[bytes, set[int]] = {}  # attempts that the agent has from before our time
        self.cancel_requested: set[bytes] = set()  # cancels for what is at the agent
        # results
        self._journal = b""
        self._durable_seq = -1
        self._token = 0
        self._storing: dict[int, tuple[int, bool]] = {}  # token -> (spool number, durable), in order of spool numbers
        self._seen_seq = -1  # of this session
        self._checking: dict[int, tuple[bridge.Results, list[Ended]]] = {}
        self._appending: dict[int, list[Ended]] = {}  # token -> ends that are on their way into the log
        self._appending_ids: set[bytes] = set()  # their ids, while a page is read

    def at_agent(self, task_id: bytes) -> bool:
        """Whether the task is at the agent."""
        return task_id in self.in_flight or task_id in self.held

    # ------------------------------------------------------------ tasks in and out

    def add_tasks(self, frame: TaskFrame, size_bytes: int, offset: int = -1) -> None:
        """Tasks that were appended just now (perhaps not durable yet; `offset`: see Intake)."""
        self.pending.add(frame, size_bytes, offset)
        self.dispatch()

    def on_page(self, token: int, rows: Sequence[OpenTask], reached: int = 0) -> None:
        """The answer to Load; the view had all records of tasks below the offset `reached`."""
        self._appending_ids = {e.id for ends in self._appending.values() for e in ends}
        self.pending.add_page(token, rows, reached)
        self._appending_ids = set()
        self.dispatch()

    def dispatch(self) -> None:
        """SendFrame as much as credit allows; load more when little is left."""
        if self.phase is not ChannelPhase.READY:
            return
        pending = self.pending
        pending.now_us = self.now_us
        pending.enqueue_due()
        while pending.queue and self.granted > self.sent:
            self._send_group(pending.dequeue(self.granted - self.sent))
        wanted = pending.next_page()
        if wanted:
            self._out.append(LoadOpenTasks(wanted[0], wanted[1], PAGE))

    def _send_group(self, group: TaskGroup) -> None:
        if self.held:  # an older attempt is at the agent still: once it has ended, loading brings the task back
            group.tasks = [t for t in group.tasks if t.id not in self.held]
        if not group.tasks:
            return
        if group.call.expires_us and self.now_us > group.call.expires_us:
            why = encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
            self.end_attempts(group, [end_by_server(t, group.attempt, EXPIRED, self.now_us, why) for t in group.tasks])
            return
        in_flight = self.in_flight
        for t in group.tasks:
            in_flight[t.id] = group
        count = len(group.tasks)
        self.sent += count
        self._send(bridge.Dispatch(group.call_raw, group.attempt, count, group.accepted_us), encode(group.tasks))

    def end_attempts(self, group: TaskGroup, ends: list[Ended]) -> None:
        """The server itself ends attempts of the group's tasks: expired, cancelled while waiting, lost."""
        closing = self._resolve(group.call, ends, {e.id: group for e in ends})
        self._store(group, ends, closing, told=True)

    def _store(self, group: TaskGroup, ends: list[Ended], closing: list[Ended], *, told: bool) -> None:
        """The server's own ends."""
        self._token += 1
        self._appending[self._token] = ends
        record = encode((VERSION, group.call, "", group.accepted_us, ends, self.epoch))
        self._out.append(StoreResults(record, self._token, group.call, closing, told, True))

    # ------------------------------------------------------------ cancel and expiry from outside

    def cancel(self, ids: Sequence[bytes], why: str) -> None:
        """At the agent: it is asked. Waiting: they shall not start, and end."""
        running = [i for i in ids if self.at_agent(i)]
        self.cancel_requested.update(running)
        if running and self.phase is ChannelPhase.READY:
            self._send(bridge.CancelTasks(why), b"".join(running))
        waiting = self.stop_waiting(ids)
        if waiting:
            self._out.append(EndWaitingTasks(waiting))

    def end_waiting(self, group: TaskGroup, ends: list[Ended]) -> list[bytes]:
        """End tasks that the view says wait; gives those that are not at the agent after all. An end that the agent
        has just told may come first in the log: so only the view says what closed them."""
        waiting = set(self.stop_waiting(e.id for e in ends))
        kept = [e for e in ends if e.id in waiting]
        if kept:
            self._store(group, kept, [], told=False)
        return [e.id for e in kept]

    def hold(self, task_id: bytes) -> bool:
        """Whether it waits here; then it will not be sent. Not so what is at the agent, or has just ended."""
        if self.at_agent(task_id) or any(e.id == task_id for ends in self._appending.values() for e in ends):
            return False
        self._stop([task_id])
        return True

    def release(self, ids: Iterable[bytes]) -> None:
        """They may be sent after all."""
        self.pending.stopped.difference_update(ids)
        self.pending.reload_at(self.now_us)  # some may have been dropped from the queue
        self.dispatch()

    def stop_waiting(self, ids: Iterable[bytes]) -> list[bytes]:
        """Those of the ids that are not at the agent; they will not be sent any more."""
        waiting = [i for i in ids if not self.at_agent(i)]
        self._stop(waiting)
        return waiting

    def _stop(self, ids: Iterable[bytes]) -> None:
        self.pending.now_us = self.now_us
        self.pending.stop(ids)

    # ------------------------------------------------------------ frames of the agent

    def on_frame(self, parts: list[bytes], now_us: int) -> None:
        """Raises Undecodable; the rim refuses the sender then."""
        self.now_us = max(self.now_us, now_us)
        envelope, body = bridge.decode_from_agent(parts)
        message = envelope.message
        if isinstance(message, bridge.Hello):
            if envelope.session > self.session:
                self._on_hello(envelope.session, message)
        elif envelope.session != self.session or self.phase is ChannelPhase.AWAY:
            if envelope.session >= self.session and not self.refused:
                self._reset(envelope.session, "no session: say hello")
        elif envelope.n > self._expect:
            self._disconnect("messages of the agent were lost on the way")
            self._reset(envelope.session, "messages were lost")
        elif envelope.n == self._expect:  # lower: a double
            self._expect += 1
            self._received_us = self.now_us
            self._on_message(message, body)
            self.dispatch()

    def _on_message(self, message: bridge.FromAgent, body: bytes) -> None:
        if isinstance(message, bridge.Results):
            self.granted = max(self.granted, message.granted)
            self._on_results(message, body)
        elif isinstance(message, bridge.Credit):
            self.granted = max(self.granted, message.granted)
        elif isinstance(message, bridge.FetchPart):
            self._out.append(ReadPart(message.sha256, message.offset_bytes))
        elif isinstance(message, bridge.UploadPart):
            self._out.append(WritePart(message.sha256, message.offset_bytes, message.size_bytes, body))
        elif isinstance(message, bridge.ReportFrame):
            self._out.append(ForwardReport(body))
        elif isinstance(message, bridge.Inventory):
            self._on_inventory(message, body)
        elif isinstance(message, bridge.Bye):
            self._disconnect(f"the agent stopped{': ' + message.why if message.why else ''}")

    def _on_hello(self, session: int, hello: bridge.Hello) -> None:
        self._disconnect("the agent says hello again")
        self.session, self._expect, self._next = session, 1, 0
        self._received_us = self.now_us
        if hello.protocol != bridge.PROTOCOL:
            why = refuse_protocol(hello, self.version)
            self.refuse(why.code, why.message, why.remedy)
            return
        if hello.epoch > self.epoch:
            self.refuse("stale-epoch", "another server acts for this endpoint now", "")
            return
        self.hello, self.refused = hello, ""
        self.granted = self.sent = 0
        self._inventory = []
        self.phase = ChannelPhase.INVENTORY
        if hello.held == 0:
            self._start_session(hello)

    def _on_inventory(self, message: bridge.Inventory, body: bytes) -> None:
        if self.phase is not ChannelPhase.INVENTORY or self.hello is None:
            return
        self._inventory += bridge.unpack_inventory(body)
        if message.last:
            self._start_session(self.hello)

    def _start_session(self, hello: bridge.Hello) -> None:
        amnesia = self._journal not in (b"", hello.journal)
        if self._journal != hello.journal:
            self._journal, self._durable_seq = hello.journal, -1
        self._seen_seq = self._durable_seq
        # An older attempt that the agent names is not the one that was sent last.
        exact = set(self._inventory)
        self._recover([i for i, group in self.in_flight.items() if (i, group.attempt) not in exact], amnesia)
        self.held, self.inventory_known = {}, True
        for task_id, attempt in self._inventory:
            group = self.in_flight.get(task_id)
            if group is None or group.attempt != attempt:
                self.held.setdefault(task_id, set()).add(attempt)
        self.pending.restart()  # what was put off while it was away, the view has too
        self.phase, self.since_us = ChannelPhase.READY, self.now_us
        self._send_welcome()
        self._out.append(PhaseChanged(self.phase, f"agent {hello.host}:{hello.pid}"))
        self.cancel_requested &= {task_id for task_id, _ in self._inventory}
        if self.cancel_requested:
            self._send(bridge.CancelTasks("end_cancelled"), b"".join(self.cancel_requested))
        self.dispatch()

    def _send_welcome(self) -> None:
        self._announced_servers = self.servers
        self._send(bridge.Welcome(self.epoch, self.server, self.version, self._durable_seq, self.servers))

    def _recover(self, missing: list[bytes], amnesia: bool) -> None:
        """Tasks that were sent but that the agent does not hold. It never got them (a frame was cut off): they go out
        again, uncharged; the view has them as open, so loading brings them back. Or its journal is gone with all that
        it knew: then those attempts are lost."""
        if amnesia:
            self._lose(missing, "the endpoint's agent came back without its journal")
        for task_id in missing:
            self.in_flight.pop(task_id, None)

    def _lose(self, ids: Iterable[bytes], why: str) -> None:
        failure = encode(Failure("oncue.TaskLost", why))
        groups: dict[int, tuple[TaskGroup, list[Ended]]] = {}
        for task_id in ids:
            group = self.in_flight[task_id]
            ends = groups.setdefault(id(group), (group, []))[1]
            ends.append(end_by_server(group.one(task_id), group.attempt, LOST, self.now_us, failure))
        for group, ends in groups.values():
            self.end_attempts(group, ends)

    # ------------------------------------------------------------ results

    def _on_results(self, message: bridge.Results, body: bytes) -> None:
        if message.seq <= self._seen_seq:
            if message.seq <= self._durable_seq:
                self._send(bridge.Ack(self._durable_seq))
            return
        ends = decode(list[Ended], body)
        self._seen_seq = message.seq
        self._token += 1
        token = self._token
        self._storing[token] = (message.seq, False)
        groups = self._expected(message, ends)
        if groups is None:
            self._checking[token] = (message, ends)
            self._out.append(CheckTasks(token, [e.id for e in ends]))
            return
        call = groups[ends[0].id].call if ends else decode(Call, message.call)
        closing = self._resolve(call, ends, groups)
        record = encode((VERSION, msgspec.Raw(message.call), self.endpoint, message.accepted_us, msgspec.Raw(body)))
        self._appending[token] = ends
        self._out.append(StoreResults(record, token, call, closing, True))

    def _expected(self, message: bridge.Results, ends: list[Ended]) -> dict[bytes, TaskGroup] | None:
        """The groups of these ends when all are attempts in flight, of the call that the agent names; else None."""
        groups: dict[bytes, TaskGroup] = {}
        in_flight, call = self.in_flight, message.call
        for e in ends:
            group = in_flight.get(e.id)
            if group is None or group.attempt != e.attempt or group.call_raw != call:
                return None
            groups[e.id] = group
        return groups if len(groups) == len(ends) else None

    def _resolve(self, call: Call, ends: list[Ended], groups: dict[bytes, TaskGroup]) -> list[Ended]:
        """Take ended attempts out of flight; those to be retried are put off. Gives the closing ones."""
        in_flight, closing = self.in_flight, []
        for e in ends:
            in_flight.pop(e.id, None)
            due = None if e.status == OK else retry_due(call, e.id, e.attempt, e.status, e.ended_us)
            if due is None:
                closing.append(e)
            elif e.id in self.cancel_requested:
                self.cancel_requested.discard(e.id)
                self._stop([e.id])
                self._out.append(EndWaitingTasks([e.id]))
            else:
                group = groups[e.id]
                task = group.one(e.id)
                self.pending.defer(
                    due, TaskGroup(call, group.call_raw, e.attempt + 1, group.accepted_us, [task], len(task.args))
                )
        self.pending.mark_ended([e.id for e in ends])
        if self.cancel_requested:
            self.cancel_requested.difference_update([e.id for e in closing])
        return closing

    def on_checked(self, token: int, known: set[bytes]) -> None:
        """The answer to Check. Ends of tasks that nobody has accepted are dropped: the agent made them up, or the
        server died before it had told anybody that it took them. Which of the others count, only the view can say."""
        if token not in self._checking:
            return
        message, ends = self._checking.pop(token)
        kept = [e for e in ends if e.id in known]
        if not kept:
            self.on_stored(token)
            return
        call = decode(Call, message.call)
        for e in kept:
            self._forget_held(e)
            group = self.in_flight.get(e.id)
            if group is not None and (e.status == OK or group.attempt == e.attempt):
                del self.in_flight[e.id]  # an end of it that comes later must go through the view too
            if e.status != OK:  # its next attempt waits in the view, or another that this end came too late for
                self.pending.reload_at(retry_due(call, e.id, e.attempt, e.status, e.ended_us) or self.now_us)
        self.pending.mark_ended([e.id for e in kept])  # a page that was asked for before may show them as open
        record = encode((VERSION, msgspec.Raw(message.call), self.endpoint, message.accepted_us, kept))
        self._appending[token] = kept
        self._out.append(StoreResults(record, token, call, [], False))
        self.dispatch()

    def _forget_held(self, e: Ended) -> None:
        attempts = self.held.get(e.id)
        if attempts is not None:
            attempts.discard(e.attempt)
            if not attempts:
                del self.held[e.id]

    def on_stored(self, token: int) -> None:
        """What Store asked for is durable: ack what is durable without a gap."""
        self._appending.pop(token, None)
        if token not in self._storing:
            return
        self._storing[token] = (self._storing[token][0], True)
        before = self._durable_seq
        for first, (seq, done) in list(self._storing.items()):
            if not done:
                break
            del self._storing[first]
            self._durable_seq = seq
        if self._durable_seq > before and self.phase is ChannelPhase.READY:
            self._send(bridge.Ack(self._durable_seq))

    def on_store_failed(self, token: int) -> None:
        """The log could not take it (a full disk): the agent keeps it and sends it again after its next hello."""
        ends = self._appending.pop(token, ())
        again = {e.id for others in self._appending.values() for e in others}  # it has sent them again already
        for e in ends:
            if e.id not in again:
                self.held.setdefault(e.id, set()).add(e.attempt)
        if token in self._storing:
            self._disconnect("results could not be stored")
            self._reset(self.session, "results could not be stored; say hello again")

    # ------------------------------------------------------------ blobs

    def send_part(self, sha256: str, offset: int, size: int, body: bytes, why: str = "") -> None:
        if self.phase is ChannelPhase.READY:
            self._send(bridge.BlobPart(sha256, offset, size, why), body)

    def send_put_ack(self, sha256: str, offset: int, why: str = "") -> None:
        if self.phase is ChannelPhase.READY:
            self._send(bridge.UploadAck(sha256, offset, why))

    # ------------------------------------------------------------ time and session

    def tick(self, now_us: int) -> None:
        self.now_us = max(self.now_us, now_us)
        if self.phase is ChannelPhase.AWAY:
            # Away alone is not lost: only away for longer than the endpoint's lost_after.
            if self.lost_after_ms and self.in_flight and self.now_us - self.since_us >= self.lost_after_ms * 1000:
                self._lose(
                    list(self.in_flight), f"the endpoint was away for {self.lost_after_ms / 1000:g} s (lost_after)"
                )
        elif self.now_us - self._received_us > bridge.SILENCE_MS * 1000:
            self._disconnect(f"not a word for {bridge.SILENCE_MS / 1000:g} s")
        elif self.phase is ChannelPhase.READY:
            if self.servers != self._announced_servers:  # one has come, gone, or has another key
                self._send_welcome()
            if self.now_us - self._sent_us >= bridge.BEAT_MS * 1000:
                self._send(bridge.Heartbeat(self.now_us))
            self.dispatch()

    def refuse(self, code: str, message: str, remedy: str) -> None:
        """Revoked, another protocol ...: the agent is told why, and nothing more of this session is read."""
        self.refused = message
        self._send(bridge.Refuse(code, message, remedy))
        self._disconnect(message)

    def redirect(self, epoch: int, to: bridge.Redirect) -> None:
        """Another server acts for the endpoint now, by a claim of this epoch (0: not known yet): the agent is sent there.
        Nothing ends: what it holds it will name there, and what waits the other has in its view."""
        if self.phase is not ChannelPhase.AWAY:
            self._out.append(
                SendFrame([bridge.encode(bridge.BridgeEnvelope(self.session, -1, max(epoch, self.epoch), to))])
            )
        self._disconnect(to.why)

    def _disconnect(self, why: str) -> None:
        if self.phase is ChannelPhase.AWAY:
            return
        told = self.phase is ChannelPhase.READY
        self.phase, self.since_us = ChannelPhase.AWAY, self.now_us
        self.pending.restart()
        self._storing.clear()
        self._checking.clear()
        if told:
            self._out.append(PhaseChanged(self.phase, why))

    def _reset(self, session: int, why: str) -> None:
        self._out.append(SendFrame([bridge.encode(bridge.BridgeEnvelope(session, -1, self.epoch, bridge.Reset(why)))]))

    def _send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        head = bridge.encode(bridge.BridgeEnvelope(self.session, self._next, self.epoch, message))
        self._next += 1
        self._sent_us = self.now_us
        self._out.append(SendFrame([head, body] if body else [head]))

    def drain(self) -> list[Effect]:
        """The effects since the last call."""
        out, self._out = self._out, []
        return out


def refuse_protocol(hello: bridge.Hello, version: str) -> bridge.Refuse:
    return bridge.Refuse(
        "version",
        f"the agent (oncue {hello.agent_version}) speaks protocol {hello.protocol}, this server (oncue {version}) speaks"
        f" {bridge.PROTOCOL}",
        f"install the same version where the agent runs: pip install 'oncue=={version}'",
    )


def end_by_server(task: TaskRecord, attempt: int, status: int, at_us: int, failure: bytes) -> Ended:
    """An attempt that the server ends without a word from the agent."""
    return Ended(task.id, attempt, status, 0, at_us, failure, b"", task.event, task.retry_of, task.mark_us)


def end_cancelled(task: TaskRecord, attempt: int, at_us: int, by: str) -> Ended:
    why = encode(Failure("oncue.TaskCancelled", f"end_cancelled by {by}" if by else "end_cancelled"))
    return end_by_server(task, attempt, CANCELLED, at_us, why)
