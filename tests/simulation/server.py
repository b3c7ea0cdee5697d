"""A server: the real channels, a log in memory, and the lifecycle fold. Appends become durable later and in order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial

from oncue import task_lifecycle
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import (
    ChannelPhase,
    CheckTasks,
    Effect,
    EndWaitingTasks,
    LoadOpenTasks,
    PhaseChanged,
    ReadPart,
    SendFrame,
    StoreResults,
    WritePart,
)
from oncue.dispatcher.bridge.pending_tasks import OpenTask, TaskGroup
from oncue.dispatcher.bridge.server_ends import end_cancelled
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import EXPIRED, Ended, ResultFrame, TaskFrame, TaskRecord
from tests.simulation.clock import Clock
from tests.simulation.hostile import NAME as HOSTILE

TICK_US = 500_000
SERVER = "server"  # the node of a server that is the only one


class Durable:
    """What survives the server: the log, folded; blobs; functions."""

    def __init__(self) -> None:
        self.states: dict[bytes, task_lifecycle.TaskState] = {}
        self.order: list[bytes] = []
        self.place: dict[bytes, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.functions: dict[str, bytes] = {}
        self.claims = 0

    def accept(self, endpoint: str, frame: TaskFrame) -> None:
        for t in frame.tasks:
            if t.id not in self.place:
                self.order.append(t.id)
                self.place[t.id] = endpoint
            self.states[t.id] = task_lifecycle.accept(self.states.get(t.id), frame.call, t, frame.accepted_us)

    def end(self, record: bytes) -> None:
        frame = decode(ResultFrame, record)
        for e in frame.ended:
            state = self.states.get(e.id)
            self.states[e.id] = task_lifecycle.end(state, frame.call, frame.accepted_us, e)


class Server:
    """One life of the server."""

    def __init__(
        self,
        durable: Durable,
        clock: Clock,
        rng: random.Random,
        endpoints: dict[str, int],
        send: Callable[[str, int, list[bytes]], None],
        channel_class: type[EndpointChannel] = EndpointChannel,
    ) -> None:
        self.durable, self.clock, self.rng, self._send = durable, clock, rng, send
        self.alive = True
        self.time = clock.process(SERVER)
        self.started_us = self.time.now_us()
        durable.claims += 1
        self.channels = {
            name: channel_class(name, durable.claims, f"srv{durable.claims}", "1", lost_after_ms=lost)
            for name, lost in endpoints.items()
        }
        self.routes: dict[str, int] = {}
        self._log: list[Callable[[], None]] = []  # appended and not durable
        self._flushing = False
        self._barriers: list[tuple[int, Callable[[], None]]] = []
        self._appended = self._done = 0
        self._uploads: dict[tuple[str, str], bytearray] = {}
        self.store_fails = 0.0
        self.crash_chance = 0.0
        self._tick()

    def crash(self) -> None:
        self.clock.note("server crashes")
        self.alive = False

    def _later(self, pause_us: float, what: Callable[[], None]) -> None:
        self.clock.after(pause_us, lambda: what() if self.alive else None)

    # ------------------------------------------------------------ the log

    def append(self, durable: Callable[[], None]) -> None:
        """Durable in order, some time from now; or never, when the server dies before."""
        self._log.append(durable)
        self._appended += 1
        if not self._flushing:
            self._flushing = True
            self._later(self.rng.randrange(100, 20_000), self._flush)

    def _flush(self) -> None:
        self._flushing = False
        group, self._log = self._log, []
        for durable in group:
            if self.alive:
                self._done += 1
                durable()
        ready = [b for at, b in self._barriers if at <= self._done]
        self._barriers = [(at, b) for at, b in self._barriers if at > self._done]
        for call in ready:
            if self.alive:
                call()

    def barrier(self, call: Callable[[], None]) -> None:
        """Once all that was handed to the log by now is durable."""
        if self._done >= self._appended:
            self._later(self.rng.randrange(50, 2_000), call)
        else:
            self._barriers.append((self._appended, call))

    # ------------------------------------------------------------ in

    def submit(self, endpoint: str, frame: TaskFrame, accepted: Callable[[], None]) -> None:
        def durable() -> None:
            self.durable.accept(endpoint, frame)
            accepted()

        self.append(durable)
        self.with_channel(endpoint, lambda channel: channel.add_tasks(frame, sum(len(t.args) for t in frame.tasks)))

    def cancel(self, endpoint: str, ids: list[bytes], recorded: Callable[[], None] = lambda: None) -> None:
        def durable() -> None:
            for task_id in ids:
                state = self.durable.states.get(task_id)
                self.durable.states[task_id] = task_lifecycle.cancel(state, task_id, self.time.now_us(), "me")
            recorded()
            self.with_channel(endpoint, lambda channel: channel.cancel(ids, "cancelled"))

        self.append(durable)

    def cancel_waiting(self, endpoint: str, task_id: bytes, promise: Callable[[], None]) -> None:
        """Cancel a waiting task as the dispatcher does. `promise` is called when it cannot run any more."""
        state, channel = self.durable.states[task_id], self.channels[endpoint]
        if state.state.closed or (not channel.inventory_known and state.accepted_us < self.started_us):
            return
        if not channel.hold(task_id):
            return
        self.clock.note(f"held back {task_id.hex()[-16:]}")

        def look() -> None:
            if self.durable.states[task_id].state.closed:
                return
            if self.store_fails and self.rng.random() < self.store_fails:
                self.with_channel(endpoint, lambda channel: channel.release([task_id]))
                return
            self.cancel(endpoint, [task_id], promise)

        self.barrier(look)

    def frame(self, endpoint: str, link: int, parts: list[bytes]) -> None:
        self.routes[endpoint] = link
        self.with_channel(endpoint, lambda channel: self._on_frame(channel, parts))

    def _on_frame(self, channel: EndpointChannel, parts: list[bytes]) -> None:
        """As BridgeSocket: an agent that cannot be read is refused, whatever it is."""
        try:
            channel.on_frame(parts, self.time.now_us())
        except Undecodable as e:
            channel.refuse(bridge.Refuse("version", e.message))

    def _tick(self) -> None:
        for name in self.channels:
            self.with_channel(name, lambda channel: channel.tick(self.time.now_us()))
        self._later(TICK_US, self._tick)

    def with_channel(self, endpoint: str, call: Callable[[EndpointChannel], object]) -> None:
        if not self.alive:
            return
        channel = self.channels[endpoint]
        channel.now_us = max(channel.now_us, self.time.now_us())
        call(channel)
        assert channel.phase is not ChannelPhase.READY or channel.sent <= max(channel.granted, 0), (
            "more sent than granted"
        )
        for effect in channel.drain():
            if self.crash_chance and self.rng.random() < self.crash_chance:
                self.crash()
            if not self.alive:
                return
            self._run_effect(channel, effect)

    # ------------------------------------------------------------ effects of channels

    def _run_effect(self, channel: EndpointChannel, effect: Effect) -> None:
        name = channel.endpoint
        if isinstance(effect, SendFrame):
            if name in self.routes:
                self._send(name, self.routes[name], effect.parts)
        elif isinstance(effect, StoreResults):
            self._store(name, effect)
        elif isinstance(effect, LoadOpenTasks):
            self.barrier(lambda: self._load(name, effect))
        elif isinstance(effect, CheckTasks):
            self.barrier(lambda: self._check(name, effect))
        elif isinstance(effect, EndWaitingTasks):
            self.barrier(lambda: self._end_waiting(name, effect.ids))
        elif isinstance(effect, ReadPart):
            self._later(self.rng.randrange(50, 5_000), lambda: self._fetch(name, effect))
        elif isinstance(effect, WritePart):
            self._later(self.rng.randrange(50, 5_000), lambda: self._put(name, effect))
        elif isinstance(effect, PhaseChanged):
            self.clock.note(f"server: {name} is {effect.phase.value}: {effect.why}")
            self._count_silence(name, effect)
            if effect.phase is ChannelPhase.READY:
                wanted = [
                    i
                    for i, s in self.durable.states.items()
                    if s.cancel_us and s.known and not s.state.closed and self.durable.place[i] == name
                ]
                if wanted:
                    self._later(
                        100, lambda: self.with_channel(name, lambda channel: channel.cancel(wanted, "cancelled"))
                    )

    def _count_silence(self, name: str, effect: PhaseChanged) -> None:
        if effect.why.startswith("not a word") and name != HOSTILE:
            self.clock.silences += 1

    def _note_expired(self, record: bytes) -> None:
        for e in decode(ResultFrame, record).ended:
            if e.status == EXPIRED:
                self.clock.expired_us.setdefault(e.id, self.clock.now_us)

    def _store(self, name: str, effect: StoreResults) -> None:
        self._note_expired(effect.record)
        if not effect.by_server and self.store_fails and self.rng.random() < self.store_fails:
            self._later(1_000, lambda: self.with_channel(name, lambda channel: channel.on_store_failed(effect.token)))
            return

        def durable() -> None:
            self.durable.end(effect.record)
            for e in effect.closing:
                self._check_published(e)
            self.with_channel(name, lambda channel: channel.on_stored(effect.token))

        self.append(durable)

    def _check_published(self, e: object) -> None:
        """Check that the end that clients get is the one in the durable log."""
        state = self.durable.states[e.id]  # type: ignore[attr-defined]
        closing = state.closing
        assert closing is not None, f"{e} was published, and the task is open in the log"
        assert closing.same_as(e), f"{e} was published, and the log has {closing}"  # type: ignore[arg-type]

    def _load(self, name: str, effect: LoadOpenTasks) -> None:
        rows: list[OpenTask] = []
        others = False
        for seq, task_id in enumerate(self.durable.order):
            s = self.durable.states[task_id]
            if self.durable.place[task_id] == name and not s.state.closed:
                assert s.call is not None
                others = others or bool(s.call.priority)
                if seq <= effect.after or s.call.priority != effect.priority:
                    continue
                task = TaskRecord(s.id, s.args, s.event, s.retry_of, s.mark_us)
                rows.append(OpenTask(seq, s.call, s.accepted_us, s.attempt, s.due_us, task))
        self.with_channel(
            name, lambda channel: channel.on_page(effect.token, rows[: effect.limit], 0, effect.priority, others)
        )

    def _check(self, name: str, effect: CheckTasks) -> None:
        states, place = self.durable.states, self.durable.place
        known = {i: call for i in effect.ids if place.get(i) == name and (call := states[i].call) is not None}
        self.with_channel(name, lambda channel: channel.on_checked(effect.token, known))

    def _end_waiting(self, name: str, ids: list[bytes]) -> None:
        for task_id in ids:
            s = self.durable.states.get(task_id)
            if s is None or s.call is None or s.state.closed:
                continue
            task = TaskRecord(s.id, s.args, s.event, s.retry_of, s.mark_us)
            group = TaskGroup(s.call, encode(s.call), s.attempt, s.accepted_us, [task], 0)
            end = end_cancelled(task, s.attempt, self.time.now_us(), s.cancel_by)

            def finish(channel: EndpointChannel, group: TaskGroup = group, end: Ended = end) -> None:
                if not channel.end_waiting(group, [end]):
                    channel.cancel([end.id], "cancelled")

            self.with_channel(name, finish)
            if self.alive and not self.channels[name].at_agent(task_id):
                self.barrier(partial(self._end_waiting, name, [task_id]))

    def _fetch(self, name: str, effect: ReadPart) -> None:
        content = self.durable.functions.get(effect.sha256) or self.durable.blobs.get(effect.sha256)
        if content is None:
            self.with_channel(
                name,
                lambda channel: channel.send_part(
                    bridge.BlobPart(effect.sha256, effect.offset_bytes, 0, "no such blob")
                ),
            )
            return
        body = content[effect.offset_bytes : effect.offset_bytes + bridge.PART_BYTES]
        self.with_channel(
            name,
            lambda channel: channel.send_part(bridge.BlobPart(effect.sha256, effect.offset_bytes, len(content)), body),
        )

    def _put(self, name: str, effect: WritePart) -> None:
        key = (name, effect.sha256)
        if effect.offset_bytes == 0:
            self._uploads[key] = bytearray()
        upload = self._uploads.setdefault(key, bytearray())
        if effect.offset_bytes <= len(upload):
            upload[effect.offset_bytes :] = effect.body
        at = len(upload)
        if at >= effect.size_bytes:
            right = hashlib.sha256(upload).hexdigest() == effect.sha256
            assert right or name == HOSTILE, "an upload without its hash"
            if not right:
                return
            self.durable.blobs[effect.sha256] = bytes(upload)
        self.with_channel(name, lambda channel: channel.send_part(bridge.UploadAck(effect.sha256, at)))
