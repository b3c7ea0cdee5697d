"""Workers of one node, as the agent's process sees them. Sans-IO.

    agent ──run──► NodePool ──Dispatch, CancelTasks, Recall, BlobPart──► node's process (process.py)
    agent ◄─drain─ NodePool ◄──Results, Inventory, UploadPart, reports── node's process

The node is an agent of its own, and this is the server that it speaks to (protocol/bridge.py). It
keeps a result until the agent's journal has it (`acknowledge`). It goes on without a connection,
and names what it holds when it dials again. So this knows what each node holds:

- What did not reach the node, or came back unstarted, is requeued, uncharged.
- When a node has vanished, tasks that may have begun there are lost, and the others requeued.
- Little is sent ahead: as much as keeps the workers busy for some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

import msgspec

from oncue.endpoint.agent.known_nodes import NodeKey
from oncue.endpoint.machine_use import MachineUse
from oncue.endpoint.nodes.node_session import NodePhase, NodeSession
from oncue.endpoint.nodes.node_tasks import NodeChunk, NodeTasks, blobs_of, lost_ends
from oncue.endpoint.nodes.site import Site
from oncue.endpoint.pool.base import PoolEvents
from oncue.errors import OncueError, Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import DECODE_ERRORS, decode, encode
from oncue.protocol.records import VERSION, Call, Ended, Failure, TaskRecord
from oncue.protocol.reports import Output, Report, Started, Usage
from oncue.protocol.run_options import RunOptions

_reports = msgspec.msgpack.Decoder(Report)
AHEAD = 4  # chunks of short tasks for each worker
LATE_US = 250_000  # after which what has not begun at the node may run elsewhere
FULL_US = 5_000_000  # for which a node that gave tasks back gets no others, unless one ends
SILENT_US = 30_000_000  # after which a node is lost
CLOSED_US = 10_000_000  # the same after it has closed its connection


class NodeFacts(msgspec.Struct):
    """Facts of a node, from its Hello and its reports."""

    host: str = ""
    pid: int = 0
    version: str = ""
    python: str = ""
    use: MachineUse = MachineUse()
    began_us: int = 0  # its job, by the agent's clock; 0: not known


class NodePool:
    """One node's process: its `key` is (block, boot)."""

    def __init__(self, block: str, hello: bridge.Hello, site: Site, epoch: int, now_us: int) -> None:
        self.block, self.name = block, f"{block}/{hello.boot.hex()}"
        self.key: NodeKey = (block, hello.boot)
        self.facts = NodeFacts(hello.host, hello.pid, hello.agent_version, hello.python)
        self.job = ""  # of the block, for people
        self.size = hello.workers
        self.trouble = ""  # why it takes no tasks; empty if it does
        self.joined_us = now_us
        self.draining = self._hands_back = False
        self._spared: Set[bytes] = frozenset()  # tasks that are not handed back
        self.gone = ""  # why it is gone for good; empty if it is not
        self.now_us = now_us
        self.out: list[list[bytes]] = []  # messages to the node
        self.session = NodeSession(epoch, now_us)
        # A node that no agent has welcomed yet has got no content.
        self.tasks = NodeTasks(whole_history=hello.epoch == 0)
        self._site = site
        self._events = PoolEvents()
        self._inventory: dict[bytes, int] = {}
        self._expected = 0  # tasks in the inventory
        self._sent = self._granted = 0  # tasks, in this session
        self._results = self._drained = self._acked = -1  # numbers of the node's journal
        self._cancelled: set[bytes] = set()
        #: Tasks that the node names and should not have. Until it has told their ends, it gets no
        #: task: it could be one of these, and their ends would be taken for its own.
        self._strangers: set[bytes] = set()
        self._permitted: set[str] = set()  # hashes that the node may fetch
        self._last = ""  # function that was run last
        self._has_last = False
        self._calls: dict[tuple[str, int, RunOptions | None], bytes] = {}
        self._closed_us = 0  # when its connection was found closed
        self._full_us = 0  # until then it gets no task

    # ------------------------------------------------------------ messages of the node

    def on_message(self, envelope: bridge.AgentEnvelope, body: bytes, now_us: int) -> None:
        """Apply a message. Raises Undecodable; the caller then calls `refuse`."""
        self.now_us = max(self.now_us, now_us)
        session, message = self.session, envelope.message
        if isinstance(message, bridge.Hello):
            if not self.gone and session.begin(envelope.session, message, self.now_us):
                self._on_hello(message)
            return
        accepted = session.accept(envelope, self.now_us)
        if accepted is None:
            self.out.append(session.unnumbered(bridge.Reset("a message was lost")))
        if not accepted or self.gone:
            return
        if session.phase is NodePhase.INVENTORY:
            if isinstance(message, bridge.Inventory):
                self._on_inventory(message, body)
            elif isinstance(message, bridge.Bye):
                self._on_bye(message)
            return
        self._on_message(message, body)

    def _on_message(self, message: bridge.FromAgent, body: bytes) -> None:
        match message:
            case bridge.Results():
                self._on_results(message, bridge.decode_ends(body))
            case bridge.Credit():
                self._granted = max(self._granted, message.granted)
                self.trouble = message.full
            case bridge.FetchPart():
                self._send_part(message)
            case bridge.UploadPart():
                self._write_part(message, body)
            case bridge.ReportFrame():
                self._on_report(_decode_report(body))
            case bridge.Bye():
                self._on_bye(message)

    def _on_hello(self, hello: bridge.Hello) -> None:
        self._closed_us = 0
        self.size = hello.workers
        if hello.age_us:
            self.facts.began_us = self.now_us - hello.age_us
        self._inventory, self._expected = {}, hello.held
        self._sent = self._granted = 0
        self._site.content.abort(self.name)
        if not hello.held:
            self._welcome()

    def _on_inventory(self, message: bridge.Inventory, body: bytes) -> None:
        self._inventory.update(bridge.unpack_inventory(body))
        if len(self._inventory) > min(self._expected, bridge.HELD_TASKS):
            raise Undecodable("an inventory of more tasks than announced")
        if message.last:
            self._welcome()

    def _welcome(self) -> None:
        """Agree with the node on the tasks that it holds."""
        named, self._inventory = self._inventory, {}
        tasks = self.tasks
        self._requeue(tasks.take_missing(named))
        unknown = [(i, n) for i, n in named.items() if i not in tasks.held]
        for claimed in self._site.claim(unknown) if unknown else ():
            short = self._site.sizer.short(claimed.function)
            nodes, width = self._site.size_of(claimed.function, claimed.options)
            took = (claimed.function, claimed.attempt, claimed.tasks, len(claimed.tasks))
            tasks.add(NodeChunk(*took, self.now_us, short, width, nodes, begun=True))
        self._site.told(self.key)
        self.session.phase = NodePhase.READY
        self._send(bridge.Welcome(self.session.epoch, "agent", "", self._acked, (), self.now_us, True))
        self._strangers = {i for i in named if i not in tasks.held}
        if self._strangers:
            self._cancel(self._strangers, "another node has this task, or it has ended")
        if again := self._cancelled & tasks.held.keys():
            self._cancel(again)
        self._cancelled = again
        self._send_recall([c for c in tasks.chunks.values() if c.recalled])

    def _on_results(self, message: bridge.Results, ends: list[Ended]) -> None:
        function = decode(Call, message.call).function  # first: what cannot be read ends no task
        self._granted = max(self._granted, message.granted)
        self._results = max(self._results, message.seq)
        if self._strangers:
            self._strangers.difference_update([e.id for e in ends])
        good, back = self.tasks.end(ends)
        self._requeue(back)
        # Its workers are busy: with long tasks, or with one that takes the room of several.
        self._full_us = self.now_us + FULL_US if back and not good else 0
        if good:
            last = good[-1]
            if last.started_us:
                self._site.sizer.measured(function, 1, max(0, last.ended_us - last.started_us))
            self._events.ended.append((function, last.attempt, good))
        if self._cancelled:
            self._cancelled.difference_update([e.id for e in ends])

    def _on_report(self, report: Report) -> None:
        held = self.tasks.held
        match report:
            case Started():
                self._events.started += [
                    (i, n, at, f"{report.worker} on {self.facts.host}") for i, n, at in report.tasks if i in held
                ]
            case Output():
                if report.task in held:
                    self._events.output.append((report.task, report.attempt, report.offset_bytes, report.text))
            case Usage():
                self.facts.use = MachineUse(
                    report.load, report.memory_bytes, report.cores, report.machine_bytes, report.used_bytes
                )

    def _on_bye(self, bye: bridge.Bye) -> None:
        """Requeue what the node has not ended: it stopped its workers before it said so."""
        self._requeue(self.tasks.take_missing({}))
        self._leave(bye.why or "it has stopped")

    # ------------------------------------------------------------ content

    def _send_part(self, part: bridge.FetchPart) -> None:
        sha256, offset = part.sha256, part.offset_bytes
        size, body, why = 0, b"", ""
        if not self._permits(sha256):
            why = "no task of this node needs it"
        else:
            try:
                size, body = self._site.content.read(sha256, offset, bridge.PART_BYTES)
            except OncueError as e:
                why = e.message
            except OSError as e:
                why = f"the agent cannot read it: {e.strerror or e}"
        if not why and offset + len(body) >= size:
            self.tasks.on_sent(sha256)
        self._send(bridge.BlobPart(sha256, offset, size, why), body)

    def _permits(self, sha256: str) -> bool:
        if sha256 not in self._permitted:
            tasks = self.tasks
            self._permitted = {c.function for c in tasks.chunks.values()}
            self._permitted.update(b for c in tasks.chunks.values() for t in tasks.live(c) for b in blobs_of(t))
        return sha256 in self._permitted

    def _write_part(self, part: bridge.UploadPart, body: bytes) -> None:
        at, why = part.offset_bytes, ""
        try:
            at = self._site.content.write(self.name, part.sha256, part.offset_bytes, part.size_bytes, body)
        except OncueError as e:
            why = e.message
        except OSError as e:
            why = f"the agent cannot store it: {e.strerror or e}"
        if at >= part.size_bytes:
            self.tasks.on_sent(part.sha256)
        self._send(bridge.UploadAck(part.sha256, at, why))

    # ------------------------------------------------------------ work in

    @property
    def ready(self) -> int:
        """Workers that take tasks."""
        return self.size if self.session.phase is NodePhase.READY and self._granted and not self.trouble else 0

    @property
    def busy(self) -> int:
        """Workers that run a task, as far as the agent knows."""
        return min(self.size, len(self.tasks.chunks))

    def room(self) -> int:
        """Return how many chunks `run` accepts now."""
        if self.draining or not self.ready or self._sent >= self._granted or self.gone:
            return 0
        tasks = self.tasks
        free = self.size - tasks.long
        if free <= 0 or self._strangers or (self._full_us and tasks.held):
            return 0
        ahead = AHEAD if self._has_last and self._site.sizer.short(self._last) else 1
        return max(0, free * ahead - tasks.short)

    @property
    def idle(self) -> bool:
        """True if it holds nothing, and takes tasks."""
        return not self.tasks.held and self.room() > 0

    def run(
        self,
        function: str,
        timeout_ms: int,
        attempt: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
        width: int = 1,
        nodes: int = 0,
    ) -> None:
        """Send one chunk. It is requeued if there is no room for it.

        `width`: workers' room that it takes; `nodes`: whole ones that its task has.
        """
        if not self.room():
            self._requeue(tasks)
            return
        short = self._site.sizer.short(function, len(tasks))
        self._last, self._has_last = function, True
        self._sent += len(tasks)
        self.tasks.add(NodeChunk(function, attempt, tasks, len(tasks), self.now_us, short, width, nodes))
        call = self._call(function, timeout_ms, options)
        self._send(bridge.Dispatch(call, attempt, len(tasks), self.now_us), encode(tasks))

    def _call(self, function: str, timeout_ms: int, options: RunOptions | None) -> bytes:
        key = (function, timeout_ms, options)
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) > 1_000:
                self._calls.clear()
            made = Call(VERSION, function, self.block, "", timeout_ms=timeout_ms, run=options)
            call = self._calls[key] = encode(made)
        return call

    def cancel(self, ids: Iterable[bytes]) -> None:
        """End those of these tasks that are here, also if the node is away now."""
        here = [i for i in ids if i in self.tasks.held]
        self._cancelled.update(here)
        if here and self.session.phase is NodePhase.READY:
            self._cancel(here)

    def _cancel(self, ids: Iterable[bytes], why: str = "") -> None:
        self._send(bridge.CancelTasks(why), b"".join(ids))

    # ------------------------------------------------------------ work back

    def drain_node(self) -> None:
        """Give it no new tasks, and take back what waits there."""
        self.draining = True
        self._recall(list(self.tasks.chunks.values()))

    def hand_back(self, spared: Set[bytes] = frozenset()) -> None:
        """End all its tasks but the spared ones, and requeue them uncharged."""
        self.draining = self._hands_back = True
        self._spared = spared
        self._recall(list(self.tasks.chunks.values()))

    def _recall(self, chunks: list[NodeChunk]) -> None:
        for chunk in chunks:
            chunk.recalled = True
        if self.session.phase is NodePhase.READY:
            self._send_recall(chunks)

    def _send_recall(self, chunks: list[NodeChunk]) -> None:
        ids = [t.id for chunk in chunks for t in self.tasks.live(chunk) if t.id not in self._spared]
        if ids:
            self._send(bridge.Recall(self._hands_back), b"".join(ids))

    def _requeue(self, tasks: list[TaskRecord]) -> None:
        if tasks:
            self._events.requeue.append(("", 0, tasks))

    def drain(self) -> PoolEvents:
        """Return the events since the last call."""
        events, self._events = self._events, PoolEvents()
        self._drained = self._results
        return events

    def acknowledge(self) -> None:
        """Note that the agent's journal has all results that were drained."""
        if self._drained > self._acked:
            self._acked = self._drained
            if self.session.phase is NodePhase.READY:
                self._send(bridge.Ack(self._acked))

    # ------------------------------------------------------------ its end

    def tick(self, now_us: int, read_us: int | None = None) -> bool:
        """Send heartbeats, notice silence, take back what waits there.

        `read_us`: all that had arrived then has been read; None: now. Return True if something has
        changed.
        """
        self.now_us = max(self.now_us, now_us)
        session = self.session
        silent_us = (self.now_us if read_us is None else read_us) - session.received_us
        if silent_us > SILENT_US:
            self.lose(f"it was silent for {SILENT_US / 1e6:g} s")
        elif self._closed_us and self.now_us - self._closed_us > CLOSED_US:
            self.lose("it closed its connection and did not come back")
        elif session.phase is NodePhase.AWAY:
            return False
        elif silent_us > bridge.SILENCE_MS * 1000:
            session.phase = NodePhase.AWAY
        else:
            late = self.tasks.take_late(self.now_us - LATE_US)
            for chunk in late:
                self.tasks.mark_long(chunk)
            self._recall(late)
            tried_again = 0 < self._full_us < self.now_us
            if tried_again:
                self._full_us = 0
            if session.beat_due(self.now_us) and session.phase is NodePhase.READY:
                self._send(bridge.Heartbeat(self.now_us))
            return bool(late or tried_again or self.out)
        return True

    def on_closed(self, now_us: int) -> None:
        """Note that a message could not be sent: the node has closed its connection."""
        self.now_us = max(self.now_us, now_us)
        if self.session.phase is NodePhase.AWAY:
            return
        # A connection that died of a silent network says nothing of the node.
        if self.now_us - self.session.received_us < 3 * bridge.BEAT_MS * 1000:
            self._closed_us = self.now_us
        self.session.phase = NodePhase.AWAY

    def lose(self, why: str) -> None:
        """Give the node up: end what may have begun as lost, and requeue the rest."""
        begun, rest = self.tasks.take_all()
        self._end_lost(begun, f"{self.where} was lost while it ran the task: {why}")
        self._requeue(rest)
        self._leave(why)

    def lose_tasks(self, ids: set[bytes], why: str) -> None:
        """End tasks of this node as lost. They are ended here before it gets others."""
        self._end_lost(self.tasks.take(ids), why)
        self._strangers |= ids
        if self.session.phase is NodePhase.READY:
            self._cancel(ids, why)

    @property
    def where(self) -> str:
        """The node, and its job, in words."""
        return f"the node {self.facts.host}" + (f" of {self.job}" if self.job else f" of block {self.block}")

    def _end_lost(self, lost: list[tuple[NodeChunk, list[TaskRecord]]], why: str) -> None:
        failure, at = encode(Failure("oncue.TaskLost", why)), self.now_us
        for chunk, tasks in lost:
            self._events.ended.append((chunk.function, chunk.attempt, lost_ends(chunk, tasks, at, failure)))

    def refuse(self, code: str, why: str) -> None:
        """Tell the node to end, and give up what it holds."""
        self.out.append(self.session.unnumbered(bridge.Refuse(code, why)))
        self.lose(why)

    def dismiss(self) -> None:
        """Let the node exit: nothing is to run there any more."""
        self.refuse("dismissed", "the agent needs this node no more")

    def _leave(self, why: str) -> None:
        self.gone = why
        self.session.phase = NodePhase.AWAY
        self._site.content.abort(self.name)

    def _send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        self.out.append(self.session.message(message, body, self.now_us))


def _decode_report(body: bytes) -> Report:
    try:
        return _reports.decode(body)
    except DECODE_ERRORS as e:
        raise Undecodable(f"not a report: {e}") from None
