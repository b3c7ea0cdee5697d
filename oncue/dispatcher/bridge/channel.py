"""Server side of the bridge protocol for one endpoint.

    new tasks, pages of the view ──► pending ──credit──► in flight ──Results──► StoreResults
                                        ▲                    │                    │ durable
                                        └────── retries ◄────┘                    └──► Ack

A state machine without I/O. Input: frames of the agent, ticks, new tasks, answers to effects.
Output: effects (effects.py), which the caller takes with `drain()` after each call and runs in
order. The state is a cache, rebuilt from the view and the agent's inventory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from oncue.dispatcher.bridge.agent_clock import AgentClock
from oncue.dispatcher.bridge.agent_limits import IN_FLIGHT_TASKS, decode_results
from oncue.dispatcher.bridge.agent_tasks import AgentTasks
from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    Dropped,
    Effect,
    EndWaitingTasks,
    ForwardReport,
    PhaseChanged,
    ReadPart,
    WritePart,
)
from oncue.dispatcher.bridge.function_limits import limited_as
from oncue.dispatcher.bridge.hello_gate import HelloGate
from oncue.dispatcher.bridge.message_numbers import MessageNumbers, accepted_epoch, refusal, unnumbered
from oncue.dispatcher.bridge.pending_queues import PendingQueues
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.result_acks import ResultAcks
from oncue.dispatcher.bridge.result_appends import ResultAppends
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.dispatcher.bridge.unmatched_results import UnmatchedResults
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import EXPIRED, LOST, OK, Call, Ended, Failure, TaskFrame
from oncue.protocol.retry_policy import retry_due


class EndpointChannel:
    """Tasks, results and connection of one endpoint."""

    def __init__(
        self,
        endpoint: str,
        epoch: int,
        server: str,
        version: str,
        *,
        lost_after_ms: int = 0,
        budget_bytes: int = 64 << 20,
        sole: bool = False,
    ) -> None:
        self.sole = sole  # no other server uses this log
        self.endpoint, self.epoch, self.server, self.version = endpoint, epoch, server, version
        self.lost_after_ms = lost_after_ms
        self.servers: tuple[tuple[str, str], ...] = ()  # addresses and keys that the agent may dial
        self._announced_servers: tuple[tuple[str, str], ...] = ()
        self.now_us = 0
        self._out: list[Effect] = []
        # the agent
        self.phase = ChannelPhase.AWAY
        self.since_us = 0
        self.hello: bridge.Hello | None = None
        self.refused = self.full = ""  # why the agent is refused; why it takes no tasks
        self.waiting_for = ""  # why tasks at the agent wait, as it told last
        self._session = MessageNumbers()
        self.agent_clock = AgentClock()
        self.granted = self.sent = 0  # tasks, since the session's start
        self.backlogged = False  # the agent does not read what it was sent; set by the socket
        self._gate = HelloGate()
        self.stray = False  # the last message was of another session: the agent is elsewhere
        # tasks
        self.pending = PendingQueues(
            lambda task_id: self.at_agent(task_id) or task_id in self._appending_ids, budget_bytes
        )
        self._agent_tasks = AgentTasks()
        self._limits = self._agent_tasks.limits
        self.in_flight = self._agent_tasks.in_flight  # sent to the agent, and not ended
        self.inventory_known = False  # an agent has listed its tasks since this channel was opened
        self.cancel_requested: set[bytes] = set()  # tasks at the agent
        # results
        self._acks = ResultAcks()
        self._appends = ResultAppends(endpoint)
        self._appending_ids: set[bytes] = set()  # tasks of these appends; set while a page is added
        self._unmatched = UnmatchedResults()

    def at_agent(self, task_id: bytes) -> bool:
        """Return True if the agent has the task, as far as the server knows."""
        return task_id in self._agent_tasks.in_flight or task_id in self._agent_tasks.held

    # ------------------------------------------------------------ tasks

    def add_tasks(self, frame: TaskFrame, size_bytes: int, offset: int = -1) -> None:
        """Add tasks that were just appended. `offset`: see PendingTasks.add."""
        self.pending.add(frame, size_bytes, offset)
        self.dispatch()

    def on_page(
        self, token: int, rows: Sequence[OpenTask], reached: int = 0, priority: int = 0, others: bool = False
    ) -> None:
        """Handle loaded tasks: all that the view had below `reached`. See PendingQueues."""
        self._appending_ids = self._appends.task_ids()
        self._out += self.pending.add_page(token, rows, reached, priority, others)
        self._appending_ids = set()
        self.dispatch()

    def dispatch(self) -> None:
        """Send as many tasks as credit allows. Load more when few are left."""
        if self.phase is not ChannelPhase.READY:
            return
        pending = self.pending
        pending.enqueue_due(self.now_us)
        while not self.backlogged and not self.full:
            room = min(self.granted - self.sent, IN_FLIGHT_TASKS - len(self.in_flight))
            if (group := pending.next_group(self._limits, room)) is None:
                break
            self._send_group(group)
        self._out += pending.request_pages()

    def _send_group(self, group: TaskGroup) -> None:
        # The agent still has an older attempt of a held task. After its end, loading adds the task
        # again.
        if held := self._agent_tasks.held:
            group.tasks = [t for t in group.tasks if t.id not in held]
        if not group.tasks:
            return
        if group.call.expires_us and self.now_us > group.call.expires_us:
            why = encode(Failure("oncue.TaskExpired", "the task did not start before its expiry"))
            self._end_attempts(group, [end_by_server(t, group.attempt, EXPIRED, self.now_us, why) for t in group.tasks])
            return
        self._agent_tasks.add(group)
        count = len(group.tasks)
        self.sent += count
        self._send(bridge.Dispatch(group.call_raw, group.attempt, count, group.accepted_us), encode(group.tasks))

    def _end_attempts(self, group: TaskGroup, ends: list[Ended]) -> None:
        """End attempts of the group's tasks that the server has decided to end."""
        closing = self._apply_ends(group.call, group.accepted_us, ends, {e.id: group for e in ends})
        self._store(group, ends, closing)

    def _store(self, group: TaskGroup, ends: list[Ended], closing: list[Ended] | None) -> None:
        self._out.append(self._appends.start_by_server(group, ends, closing, self.epoch))

    # ------------------------------------------------------------ cancel, hold, end

    def cancel(self, ids: Sequence[bytes], why: str) -> None:
        """Ask the agent to cancel the tasks that it has; end the others, which wait."""
        running = [i for i in ids if self.at_agent(i)]
        self.cancel_requested.update(running)
        if running and self.phase is ChannelPhase.READY:
            self._send(bridge.CancelTasks(why), b"".join(running))
        waiting = self.stop_waiting(ids)
        if waiting:
            self._out.append(EndWaitingTasks(waiting))

    def end_waiting(self, group: TaskGroup, ends: list[Ended]) -> list[bytes]:
        """End tasks that wait according to the view; return those that were ended.

        The log may already have an end from the agent: only the view can say which one counts.
        """
        waiting = set(self.stop_waiting(e.id for e in ends))
        kept = [e for e in ends if e.id in waiting]
        if kept:
            self._store(group, kept, None)
        return [e.id for e in kept]

    def hold(self, task_id: bytes) -> bool:
        """Keep a waiting task from being sent; False if it was sent or has ended."""
        if self.at_agent(task_id) or self._appends.has(task_id):
            return False
        self.pending.stop([task_id], self.now_us)
        return True

    def release(self, ids: Iterable[bytes]) -> None:
        """Allow held tasks to be sent again."""
        self.pending.release(list(ids), self.now_us)
        self.dispatch()

    def stop_waiting(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the ids that the agent does not have; they will not be sent."""
        waiting = [i for i in ids if not self.at_agent(i)]
        self.pending.stop(waiting, self.now_us)
        return waiting

    # ------------------------------------------------------------ frames of the agent

    def on_frame(self, parts: list[bytes], now_us: int) -> None:
        """Handle a message of the agent. Raises Undecodable; the caller then refuses it."""
        self.now_us = max(self.now_us, now_us)
        envelope, body = bridge.decode_from_agent(parts)
        message, session = envelope.message, self._session
        if isinstance(message, bridge.Hello):
            away = self.phase is ChannelPhase.AWAY
            answer = self._gate.admit(envelope.session, message, session, away, self.now_us)
            if answer is True:
                self._on_hello(envelope.session, message)
            elif isinstance(answer, Dropped):
                self._out.append(answer)
            elif answer is not False:
                self._out.append(unnumbered(envelope.session, self.epoch, answer))
        elif envelope.session != session.number or self.phase is ChannelPhase.AWAY:
            if envelope.session >= session.number and not self.refused and envelope.session != self._gate.fenced:
                self._reset(envelope.session, "no session: say hello")
        elif envelope.n > session.expected:
            self._disconnect("messages of the agent were lost on the way")
            self._reset(envelope.session, "messages were lost")
        elif envelope.n == session.expected:  # lower: a duplicate
            session.receive(self.now_us)
            self._on_message(message, body)
            self.dispatch()
        self.stray = envelope.session != session.number

    def _on_message(self, message: bridge.FromAgent, body: bytes) -> None:
        if self.phase is not ChannelPhase.READY and not isinstance(message, bridge.Inventory | bridge.Bye):
            return
        match message:  # the most frequent first
            case bridge.Results():
                self.granted = max(self.granted, message.granted)
                self._on_results(message, body)
            case bridge.Heartbeat():
                self.agent_clock.measure(message.at_us, self.now_us)
            case bridge.Credit():
                self.granted, self.full = max(self.granted, message.granted), message.full
            case bridge.FetchPart():
                self._out.append(ReadPart(message.sha256, message.offset_bytes))
            case bridge.UploadPart():
                self._out.append(WritePart(message.sha256, message.offset_bytes, message.size_bytes, body))
            case bridge.ReportFrame():
                self._out.append(ForwardReport(body))
            case bridge.Inventory():
                self._on_inventory(message, body)
            case bridge.Bye():
                self._disconnect(f"the agent stopped{': ' + message.why if message.why else ''}")

    def _on_hello(self, number: int, hello: bridge.Hello) -> None:
        self._disconnect("the agent says hello again")
        self._session.start(number, hello, self.now_us)
        self.agent_clock.measure(hello.at_us, self.now_us)
        self.epoch = accepted_epoch(hello, self.epoch, self.sole)
        if refused := refusal(hello, self.epoch, self.version):
            self.refuse(refused)
            return
        self.hello, self.refused, self.full, self._limits.workers = hello, "", "", max(1, hello.workers)
        self.granted, self.sent, self.waiting_for = 0, 0, ""
        self._agent_tasks.begin_inventory()
        self.phase = ChannelPhase.INVENTORY
        if hello.held == 0:
            self._start_session(hello)

    def _on_inventory(self, message: bridge.Inventory, body: bytes) -> None:
        if self.phase is not ChannelPhase.INVENTORY or self.hello is None:
            return
        self._agent_tasks.add_inventory(bridge.unpack_inventory(body))
        if self._agent_tasks.listed > self.hello.held:
            raise Undecodable(f"an inventory of more than the {self.hello.held:,} tasks that were announced")
        if message.last:
            self._start_session(self.hello)

    def _start_session(self, hello: bridge.Hello) -> None:
        """Compare the agent's inventory with the sent tasks, and send Welcome."""
        journal_lost = self._acks.start_session(hello.journal)
        # Tasks that were sent, but that the agent does not have: a frame was lost. They are open in
        # the view, so loading brings them back as the same attempt.
        missing = self._agent_tasks.end_inventory()
        if journal_lost:
            self._lose(missing, "the endpoint's agent came back without its journal")
        self._agent_tasks.drop(missing)
        self.inventory_known = True
        # The view also has the retries that were deferred while the agent was away.
        self.pending.restart()
        self.phase, self.since_us = ChannelPhase.READY, self.now_us
        self._send_welcome()
        twin = "; TWO AGENTS have its key (a copied folder?) and take turns" if self._session.is_twin else ""
        self._out.append(PhaseChanged(self.phase, f"agent {hello.host}:{hello.pid}{twin}"))
        self.cancel_requested = {task_id for task_id in self.cancel_requested if self.at_agent(task_id)}
        if self.cancel_requested:
            self._send(bridge.CancelTasks("cancelled"), b"".join(self.cancel_requested))
        self.dispatch()

    def _send_welcome(self) -> None:
        self._announced_servers = self.servers
        durable_seq = self._acks.durable_seq
        self._send(bridge.Welcome(self.epoch, self.server, self.version, durable_seq, self.servers, self.now_us, True))

    def _lose(self, ids: Iterable[bytes], why: str) -> None:
        failure = encode(Failure("oncue.TaskLost", why))
        for group, ends in self._agent_tasks.ends_of(ids, LOST, self.now_us, failure):
            self._end_attempts(group, ends)

    # ------------------------------------------------------------ results

    def _on_results(self, message: bridge.Results, body: bytes) -> None:
        if self._acks.is_repeated(message.seq):
            if message.seq <= self._acks.durable_seq:
                self._send(bridge.Ack(self._acks.durable_seq))
            return
        ends, body = self.agent_clock.correct(*decode_results(body), self.now_us)
        token = self._appends.next_token()
        self._acks.start(token, message.seq)
        groups = self._agent_tasks.groups_of(message, ends)
        if groups is None:
            if self._unmatched.add(token, message, ends, len(body)):
                self._out.append(CheckTasks(token, [e.id for e in ends]))
            else:
                self.end_session("outcome", "sent too many outcomes of tasks that are not in flight")
            return
        if not ends:
            self.on_stored(token)
            return
        call = groups[ends[0].id].call
        closing = self._apply_ends(call, message.accepted_us, ends, groups)
        self._out.append(self._appends.start(token, message, ends, call, closing, body))

    def _apply_ends(self, call: Call, since_us: int, ends: list[Ended], groups: dict[bytes, TaskGroup]) -> list[Ended]:
        """Remove ended attempts from `in_flight`, and defer their retries.

        Return the ends that close a task.
        """
        in_flight, closing, before = self.in_flight, [], len(self.in_flight)
        for e in ends:
            in_flight.pop(e.id, None)
            due = None if e.status == OK else retry_due(call.retry, e, since_us)
            if due is None:
                closing.append(e)
            elif e.id in self.cancel_requested:
                self.cancel_requested.discard(e.id)
                self.pending.stop([e.id], self.now_us)
                self._out.append(EndWaitingTasks([e.id]))
            else:
                self.pending.defer(due, groups[e.id].next_attempt(e))
        self._limits.ended(limited_as(call), ends, before - len(in_flight))
        self.pending.mark_ended([e.id for e in ends])
        if self.cancel_requested:
            self.cancel_requested.difference_update([e.id for e in closing])
        return closing

    def on_checked(self, token: int, calls: Mapping[bytes, Call]) -> None:
        """Handle the answer to CheckTasks: calls of tasks that are this endpoint's.

        Other results are dropped. The view decides which of the rest count.
        """
        found = self._unmatched.pop(token, calls)
        if found is None:
            return
        message, kept, others = found
        if others:
            self._out.append(Dropped("outcome", "reported ends of tasks that are not its own", others))
        if not kept:
            self.on_stored(token)
            return
        call = calls[kept[0].id]
        for e in kept:
            self._agent_tasks.apply_unmatched(e)
            if e.status != OK:  # the view has its next attempt, or a later one if this end was late
                self.pending.reload_at(retry_due(call.retry, e, message.accepted_us) or self.now_us, call)
        # A page that was requested before may show them as open.
        self.pending.mark_ended([e.id for e in kept])
        self._out.append(self._appends.start(token, message, kept, call, None))
        self.dispatch()

    def on_stored(self, token: int) -> None:
        """Handle the success of StoreResults: acknowledge what is durable without a gap."""
        self._appends.finish(token)
        if self._acks.is_open(token) and self._acks.finish(token) and self.phase is ChannelPhase.READY:
            self._send(bridge.Ack(self._acks.durable_seq))

    def on_store_failed(self, token: int) -> None:
        """Handle the failure of StoreResults: the agent sends them after its next Hello."""
        for e in self._appends.fail(token):
            self._agent_tasks.add_held(e.id, e.attempt)
        if self._acks.is_open(token):
            self._disconnect("results could not be stored")
            self._reset(self._session.number, "results could not be stored; say hello again")

    def send_part(self, part: bridge.BlobPart | bridge.UploadAck, body: bytes = b"") -> None:
        """Answer ReadPart or WritePart, if the agent is still connected."""
        if self.phase is ChannelPhase.READY:
            self._send(part, body)

    # ------------------------------------------------------------ time and session

    def tick(self, now_us: int) -> None:
        """Handle the agent's silence, heartbeats, lost tasks and retries that are due."""
        self.now_us = max(self.now_us, now_us)
        if self.phase is ChannelPhase.AWAY:
            # Tasks are lost only if the agent is away for longer than the endpoint's lost_after.
            if self.lost_after_ms and self.in_flight and self.now_us - self.since_us >= self.lost_after_ms * 1000:
                self._lose(
                    list(self.in_flight), f"the endpoint was away for {self.lost_after_ms / 1000:g} s (lost_after)"
                )
        elif self.now_us - self._session.received_us > bridge.SILENCE_MS * 1000:
            self._disconnect(f"not a word for {bridge.SILENCE_MS / 1000:g} s")
        elif self.phase is ChannelPhase.READY:
            if self.servers != self._announced_servers:
                self._send_welcome()
            if self.now_us - self._session.sent_us >= bridge.BEAT_MS * 1000:
                self._send(bridge.Heartbeat(self.now_us))
            self.dispatch()

    def refuse(self, refusal: bridge.Refuse) -> None:
        """Refuse the agent, and ignore the rest of its session."""
        self.refused = refusal.message
        self._send(refusal)
        self._disconnect(refusal.message)

    def redirect(self, epoch: int, to: bridge.Redirect) -> None:
        """Send the agent to the server with this claim (`epoch` 0: not known yet).

        No task ends: the agent's inventory and the view give the new owner all tasks.
        """
        if self.phase is not ChannelPhase.AWAY:
            self._out.append(unnumbered(self._session.number, max(epoch, self.epoch), to))
        self._disconnect(to.why)

    def _disconnect(self, why: str) -> None:
        if self.phase is ChannelPhase.AWAY:
            return
        was_ready = self.phase is ChannelPhase.READY
        self.phase, self.since_us = ChannelPhase.AWAY, self.now_us
        self.pending.restart()
        self._acks.end_session()
        self._unmatched.clear()
        if was_ready:
            self._out.append(PhaseChanged(self.phase, why))

    def end_session(self, reason: str, why: str) -> None:
        """Count what the agent did wrong, and ask it for a new session."""
        self._out.append(Dropped(reason, why))
        self._disconnect(f"it {why}")
        self._reset(self._session.number, f"the agent {why}")

    def _reset(self, number: int, why: str) -> None:
        self._out.append(unnumbered(number, self.epoch, bridge.Reset(why)))

    def _send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        self._out.append(self._session.frame(self.epoch, message, body, self.now_us))

    def drain(self) -> list[Effect]:
        """Return the effects since the last call."""
        out, self._out = self._out, []
        return out
