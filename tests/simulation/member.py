"""One of several servers: the real channels, and a model of PartitionOwnership on virtual time.

The view lags behind the shared log, and the server may be stopped while appends are in progress.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    EndWaitingTasks,
    LoadOpenTasks,
    PhaseChanged,
    SendFrame,
    StoreResults,
)
from oncue.dispatcher.bridge.pending_tasks import OpenTask
from oncue.dispatcher.bridge.pending_tasks import TaskGroup as Tasks
from oncue.dispatcher.bridge.server_ends import end_by_server, end_cancelled
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import EXPIRED, Ended, Failure, ResultFrame, TaskFrame, TaskRecord
from oncue.task_lifecycle import State, TaskState
from tests.simulation.clock import Clock
from tests.simulation.group import HEARTBEAT_US, MARGIN, SESSION_US, Group
from tests.simulation.server import Server
from tests.simulation.topics import (
    RESULTS,
    CancelRequested,
    Claimed,
    Entry,
    Fenced,
    Fold,
    Topics,
    Written,
    control_of,
    tasks_of,
)

LATE = encode(Failure("oncue.TaskExpired", "late"))
EXPIRY_US = 1_000_000


class Member(Server):
    """`publish` gets each end that closes a task, as clients would."""

    def __init__(
        self,
        name: str,
        topics: Topics,
        group: Group,
        clock: Clock,
        rng: random.Random,
        endpoints: dict[str, int],
        send: Callable[[str, str, int, list[bytes]], None],
        publish: Callable[[str, Ended], None],
        channel_class: type[EndpointChannel] = EndpointChannel,
    ) -> None:
        self.name, self.topics, self.group, self.clock, self.rng = name, topics, group, clock, rng
        self.durable = topics  # type: ignore[assignment]  # its blobs and functions
        self._endpoints, self._channel_class, self._publish = endpoints, channel_class, publish
        self._send = lambda endpoint, link, parts: send(name, endpoint, link, parts)
        self.time = clock.process(name)
        self.alive, self.paused = True, False
        self.channels: dict[str, EndpointChannel] = {}
        self.routes: dict[str, int] = {}
        self.fold = Fold(topics)
        self.crash_chance = self.store_fails = 0.0
        self._uploads: dict[tuple[str, str], bytearray] = {}
        self._frozen: deque[Callable[[], None]] = deque()
        self._handed_over = 0  # appends
        self._under_way: set[int] = set()  # their numbers
        self._flushes: list[tuple[int, Callable[[], None]]] = []
        self._last: dict[str, int] = {}  # partition -> when its last append arrives
        self._waiting: list[tuple[dict[str, int], Callable[[], None]]] = []
        # owners
        self._assigned: frozenset[str] = frozenset()
        self._mine: dict[str, int] = {}
        self._settling = 0
        self._rejoined = True
        self._received_us = self._turn = 0
        group.join(self)
        self._heartbeat()
        self._read()
        self._tick()
        self._expire()

    # ------------------------------------------------------------ stopped and continued

    def _later(self, pause_us: float, what: Callable[[], None]) -> None:
        self.clock.after(pause_us, lambda: self.run(what))

    def run(self, what: Callable[[], None]) -> None:
        """Now; or, where it is stopped, as soon as it goes on; or never."""
        if self.paused:
            self._frozen.append(what)
        elif self.alive:
            what()

    def pause(self) -> None:
        self.clock.note(f"{self.name} is stopped")
        self.paused = True

    def go_on(self) -> None:
        """All that had come meanwhile happens, before it hears of anything else."""
        if not self.paused:
            return
        self.clock.note(f"{self.name} goes on")
        self.paused = False
        while self._frozen and self.alive and not self.paused:
            self._frozen.popleft()()

    def crash(self) -> None:
        self.clock.note(f"{self.name} crashes")
        self.alive = False
        self._frozen.clear()

    # ------------------------------------------------------------ the group

    def _heartbeat(self) -> None:
        sent = self.clock.now_us
        if self.group.heartbeat(self):
            self._received_us = sent
        else:
            self._rejoined = True
            self.group.join(self)
        self._later(100_000 if self._rejoined else HEARTBEAT_US, self._heartbeat)

    def _confirm(self) -> None:
        sent = self.clock.now_us
        if self.group.heartbeat(self):
            self._received_us = sent

    def rejoin(self) -> None:
        self._rejoined = True

    def is_exclusive(self, endpoint: str) -> bool:
        return endpoint in self._mine and self._is_exclusive()

    def _is_exclusive(self) -> bool:
        return not self._rejoined and self.clock.now_us - self._received_us < MARGIN * SESSION_US

    def given(self, endpoints: frozenset[str], turn: int) -> None:
        def hear() -> None:
            if turn < self._turn:
                return
            self._turn = turn
            self._rejoined, self._received_us = False, 0
            self._settle(endpoints)
            self._later(self.rng.randrange(500, 50_000), self._confirm)

        self.run(hear)

    # ------------------------------------------------------------ owners

    def _settle(self, given: frozenset[str]) -> None:
        self._assigned = given
        self._settling += 1
        turn = self._settling
        for endpoint in [e for e in self._mine if e not in given]:
            self._lose(endpoint)
        self._when(self.topics.ends(control_of(e) for e in self._endpoints), lambda: self._claim(turn))

    def _claim(self, turn: int) -> None:
        if turn != self._settling:
            return
        wanted = [e for e in self._assigned if e not in self._mine]
        epochs: dict[str, int] = {}

        def claimed(endpoint: str, offset: int) -> None:
            epochs[endpoint] = offset + 1
            if len(epochs) == len(wanted):
                self.append(RESULTS, Fenced(tuple(epochs.items())), lambda _: self._act(turn, epochs))

        for endpoint in wanted:
            self.append(control_of(endpoint), Claimed(self.name), lambda offset, e=endpoint: claimed(e, offset))

    def _act(self, turn: int, epochs: dict[str, int]) -> None:
        names = [RESULTS, *(control_of(e) for e in epochs), *(tasks_of(e) for e in epochs)]

        def act() -> None:
            if turn != self._settling:
                return
            if not self._is_exclusive():
                return self._later(20_000, act)
            for endpoint, epoch in epochs.items():
                if self.fold.claims[endpoint][0] == epoch:
                    self._mine[endpoint] = epoch
                    self.clock.note(f"{self.name} acts for {endpoint}, epoch {epoch}")
                    lost = self._endpoints[endpoint]
                    self.channels[endpoint] = self._channel_class(endpoint, epoch, self.name, "1", lost_after_ms=lost)
                    self.channels[endpoint].servers = self.fold.servers()
                    cancelled = [s.id for s in self.fold.open_of(endpoint) if s.cancel_us]
                    self.with_channel(endpoint, lambda channel, c=cancelled: channel.cancel(c, "cancelled"))
                else:
                    self._contest()

        self._when(self.topics.ends(names), act)

    def _contest(self) -> None:
        self._later(1_000_000, lambda: self._settle(self._assigned) if self._is_exclusive() else self._contest())

    def _lose(self, endpoint: str) -> None:
        del self._mine[endpoint]
        channel = self.channels.pop(endpoint)
        epoch, to = self._redirect(endpoint)
        channel.redirect(epoch, to)
        for effect in channel.drain():
            if isinstance(effect, SendFrame) and endpoint in self.routes:
                self._send(endpoint, self.routes[endpoint], effect.parts)

    def _redirect(self, endpoint: str) -> tuple[int, bridge.Redirect]:
        epoch, server = self.fold.claims.get(endpoint, (0, ""))
        if server in ("", self.name):
            return epoch, bridge.Redirect(why="not known yet")
        return epoch, bridge.Redirect(server, "k", "another acts")

    # ------------------------------------------------------------ the log

    def append(self, partition: str, entry: Entry, done: Callable[[int], None]) -> None:  # type: ignore[override]
        """Leaves the process later, and arrives later still: in order. What has left arrives, whatever becomes of it."""

        def leave() -> None:
            at = max(self._last.get(partition, 0), self.clock.now_us + self.rng.randrange(100, 20_000))
            self._last[partition] = at
            self.clock.at(at, arrive)

        def arrive() -> None:
            log = self.topics.partitions[partition]
            log.append(Written(entry, self.name))
            offset = len(log) - 1
            self._later(self.rng.randrange(100, 3_000), lambda: self._ack(number, lambda: done(offset)))

        number = self._handed_over
        self._handed_over += 1
        self._under_way.add(number)
        self._leave(partition, leave)

    def _ack(self, number: int, done: Callable[[], None]) -> None:
        self._under_way.discard(number)
        done()
        first = min(self._under_way, default=self._handed_over)
        ready = [call for at, call in self._flushes if at <= first]
        self._flushes = [(at, call) for at, call in self._flushes if at > first]
        for call in ready:
            self.run(call)

    def _leave(self, partition: str, leave: Callable[[], None]) -> None:
        key = "leave " + partition
        at = max(self._last.get(key, 0), self.clock.now_us + self.rng.choice((0, 0, 2_000, 30_000)))
        self._last[key] = at
        self.clock.at(at, lambda: self.run(leave))

    def _read(self) -> None:
        names = list(self.topics.partitions)
        self.rng.shuffle(names)
        fresh: list[tuple[str, int, Written]] = []
        for name in names:
            end = len(self.topics.partitions[name])
            if self.rng.random() < 0.8:
                fresh += [(name, offset, w) for offset, w in self.fold.apply(name, end)]
        ready = [call for ends, call in self._waiting if self.fold.has(ends)]
        self._waiting = [(ends, call) for ends, call in self._waiting if not self.fold.has(ends)]
        for call in ready:
            self.run(call)
        # The channels get entries a moment later than the view, so the view may be queried in between.
        self._later(self.rng.choice((0, 500)), lambda: self._feed(fresh))
        self._later(self.rng.choice((1_000, 1_000, 10_000, 60_000)), self._read)

    def _feed(self, fresh: list[tuple[str, int, Written]]) -> None:
        for name, offset, written in fresh:
            entry = written.entry
            if not self.alive:
                return
            if isinstance(entry, TaskFrame) and written.by != self.name:
                size = sum(len(t.args) for t in entry.tasks)
                self.with_channel(
                    entry.call.endpoint, lambda channel, e=entry, o=offset, s=size: channel.add_tasks(e, s, o)
                )
            elif isinstance(entry, CancelRequested):
                self.with_channel(name.partition(".")[2], lambda channel, e=entry: channel.cancel(e.ids, "cancelled"))
            elif isinstance(entry, Claimed):
                for channel in self.channels.values():
                    channel.servers = self.fold.servers()
                endpoint = name.partition(".")[2]
                if entry.server == self.name:
                    continue
                if self._mine.get(endpoint, offset + 1) < offset + 1:
                    self._lose(endpoint)
                    self._contest()

    def _when(self, ends: dict[str, int], call: Callable[[], None]) -> None:
        """Once the view has all below these offsets."""
        if self.fold.has(ends):
            self._later(self.rng.randrange(50, 2_000), call)
        else:
            self._waiting.append((ends, call))

    def barrier(self, call: Callable[[], None], endpoint: str = "") -> None:
        """All that was handed over before is durable, and the view has it."""

        def flushed() -> None:
            self._when(self.topics.ends((RESULTS, tasks_of(endpoint))), call)

        if not self._under_way:
            flushed()
        else:
            self._flushes.append((self._handed_over, flushed))

    # ------------------------------------------------------------ in

    def submit(self, endpoint: str, frame: TaskFrame, accepted: Callable[[], None]) -> None:
        def done(_: int) -> None:
            accepted()
            size = sum(len(t.args) for t in frame.tasks)
            self.with_channel(endpoint, lambda channel: channel.add_tasks(frame, size))

        self.append(tasks_of(endpoint), frame, done)

    def cancel(self, endpoint: str, ids: list[bytes], recorded: Callable[[], None] = lambda: None) -> None:
        self.append(control_of(endpoint), CancelRequested(tuple(ids), self.time.now_us()), lambda _: recorded())

    def cancel_waiting(self, endpoint: str, task_id: bytes, promise: Callable[[], None]) -> None:
        state, channel = self.fold.states.get(task_id), self.channels.get(endpoint)
        if (
            state is None
            or state.state.closed
            or channel is None
            or not channel.inventory_known
            or not self.is_exclusive(endpoint)
        ):
            return
        if not channel.hold(task_id):
            return

        def look() -> None:
            if not self.fold.states[task_id].state.closed:
                self.cancel(endpoint, [task_id], lambda: promise() if self.is_exclusive(endpoint) else None)

        self.barrier(look, endpoint)

    def frame(self, endpoint: str, link: int, parts: list[bytes]) -> None:
        def hear() -> None:
            if endpoint in self.channels:
                super(Member, self).frame(endpoint, link, parts)
                return
            envelope, _ = bridge.decode_from_agent(parts)
            epoch, to = self._redirect(endpoint)
            if epoch < envelope.epoch and to.bridge:
                to = bridge.Redirect(why="not known yet")
            head = bridge.BridgeEnvelope(envelope.session, -1, max(epoch, envelope.epoch), to)
            self._send(endpoint, link, [bridge.encode(head)])

        self.run(hear)

    def with_channel(self, endpoint: str, call: Callable[[EndpointChannel], object]) -> None:
        if endpoint in self.channels:
            super().with_channel(endpoint, call)

    def _expire(self) -> None:
        """The housekeeper's duty, for endpoints whose agents are away, too."""
        for endpoint in list(self.channels):
            for s in self.fold.open_of(endpoint):
                if s.call is not None and s.call.expires_us and s.call.expires_us < self.time.now_us():
                    end = end_by_server(_task(s), s.attempt, EXPIRED, self.time.now_us(), LATE)
                    self.with_channel(endpoint, lambda channel, s=s, e=end: channel.end_waiting(_tasks(s), [e]))
        self._later(EXPIRY_US, self._expire)

    # ------------------------------------------------------------ effects of channels

    def _run_effect(self, channel: EndpointChannel, effect: Any) -> None:
        name = channel.endpoint
        if isinstance(effect, LoadOpenTasks):
            self.barrier(lambda: self._load(name, effect), name)
        elif isinstance(effect, CheckTasks):
            self.barrier(lambda: self._check(name, effect), name)
        elif isinstance(effect, EndWaitingTasks):
            self.barrier(lambda: self._end_waiting(name, effect.ids), name)
        elif isinstance(effect, PhaseChanged):
            self.clock.note(f"{self.name}: {name} is {effect.phase.value}: {effect.why}")
            self._count_silence(name, effect)
            if effect.phase is ChannelPhase.READY:
                wanted = [s.id for s in self.fold.open_of(name) if s.cancel_us]
                if wanted:
                    self._later(
                        100, lambda: self.with_channel(name, lambda channel: channel.cancel(wanted, "cancelled"))
                    )
        else:
            super()._run_effect(channel, effect)

    def _store(self, name: str, effect: StoreResults) -> None:
        self._note_expired(effect.record)
        if not effect.by_server and self.store_fails and self.rng.random() < self.store_fails:
            self._later(1_000, lambda: self.with_channel(name, lambda channel: channel.on_store_failed(effect.token)))
            return

        def done(offset: int) -> None:
            if self.is_exclusive(name) and not effect.by_server:
                for e in effect.closing:
                    self._publish(self.name, e)
            else:
                ids = [e.id for e in effect.closing]
                self._when({RESULTS: offset + 1}, lambda: self._publish_by_view(ids))
            self.with_channel(name, lambda channel: channel.on_stored(effect.token))

        decode(ResultFrame, effect.record)
        self.append(RESULTS, bytes(effect.record), done)

    def _publish_by_view(self, ids: list[bytes]) -> None:
        for task_id in ids:
            closing = self.fold.closing(task_id)
            if closing is not None:
                self._publish(self.name, closing)

    def _load(self, name: str, effect: LoadOpenTasks) -> None:
        rows = [
            OpenTask(self.fold.seq[s.id], s.call, s.accepted_us, s.attempt, s.due_us, _task(s))
            for s in self.fold.open_of(name)
            if self.fold.seq[s.id] > effect.after and s.call is not None and s.call.priority == effect.priority
        ]
        others = any(s.call is not None and s.call.priority for s in self.fold.open_of(name))
        reached = self.fold.reached[tasks_of(name)]
        # The answer is of the view as it is now, and comes later.
        page = rows[: effect.limit]
        self._later(
            self.rng.choice((0, 300, 3_000)),
            lambda: self.with_channel(
                name, lambda channel: channel.on_page(effect.token, page, reached, effect.priority, others)
            ),
        )

    def _check(self, name: str, effect: CheckTasks) -> None:
        states, place = self.fold.states, self.fold.place
        known = {i: call for i in effect.ids if place.get(i) == name and (call := states[i].call) is not None}
        self.with_channel(name, lambda channel: channel.on_checked(effect.token, known))

    def _end_waiting(self, name: str, ids: list[bytes]) -> None:
        for task_id in ids:
            s = self.fold.states.get(task_id)
            if s is None or s.call is None or s.state is not State.WAITING or name not in self.channels:
                continue
            end = end_cancelled(_task(s), s.attempt, self.time.now_us(), s.cancel_by)

            def finish(channel: EndpointChannel, s: TaskState = s, end: Ended = end) -> None:
                if not channel.end_waiting(_tasks(s), [end]):
                    channel.cancel([end.id], "cancelled")

            self.with_channel(name, finish)
            if self.alive and name in self.channels and not self.channels[name].at_agent(task_id):
                self.barrier(lambda i=task_id: self._end_waiting(name, [i]), name)


def _task(s: TaskState) -> TaskRecord:
    return TaskRecord(s.id, s.args, s.event, s.retry_of, s.mark_us)


def _tasks(s: TaskState) -> Tasks:
    assert s.call is not None
    return Tasks(s.call, encode(s.call), s.attempt, s.accepted_us, [_task(s)], 0)
