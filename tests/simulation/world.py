"""One seed: a scenario, its faults, a fair end, and what must hold then (docs: what must hold)."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from oncue.clocks.process import ProcessClock
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.endpoint.agent.agent import Agent
from oncue.endpoint.agent.held_tasks import TOLERANCE_US
from oncue.ids import derived_ids
from oncue.protocol import bridge
from oncue.protocol.codec import decode
from oncue.protocol.payload import Ref, pack_ref, ref_of
from oncue.protocol.records import OK, VERSION, Call, Ended, StoredRetryPolicy, TaskFrame, TaskRecord
from oncue.task_lifecycle import State
from tests.simulation.clock import Clock
from tests.simulation.hostile import NAME, HostileAgent
from tests.simulation.server import SERVER, Durable, Server
from tests.simulation.site import Site, behaviour, content_of

FAULTY_US = 20_000_000
LIMIT_US = 600_000_000
EXPIRES_US = 3_000_000
STEPS_US = [sign * s * 1_000_000 for s in (1, 3_600, 365 * 86_400) for sign in (1, -1)]
SETTLE_US = 100_000_000


class World:
    _may_be_hostile = True

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        agent_class: type[Agent] = Agent,
        channel_class: type[EndpointChannel] = EndpointChannel,
        clock_class: type[ProcessClock] = ProcessClock,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.clock_rng = random.Random(f"clock {seed}")  # of its own: the other faults of a seed stay what they are
        self.priority_rng = random.Random(f"priority {seed}")
        self.clock_faults = self.clock_rng.random() < 0.5
        self.clock = Clock(clock_class)
        self.clock.trace = trace
        self.durable = Durable()
        self.fair = rng.random() < 0.1  # no faults at all: then nothing may run twice
        self._channel_class = channel_class
        self.loss = 0.0 if self.fair else rng.choice((0.0, 0.0, 0.01, 0.1))
        self.double = 0.0 if self.fair else rng.choice((0.0, 0.02, 0.2))
        self._arrive: dict[tuple[str, int, bool], int] = {}  # (site, link, to server) -> when the last message arrives
        self.cuts: set[tuple[str, int]] = set()
        self.runs: Counter[tuple[bytes, int]] = Counter()
        self.accepted: set[bytes] = set()
        self.promised: set[bytes] = set()  # that they will not run (any more)
        self.functions = [rng.randbytes(rng.choice((40, 40, 2_100_000))) for _ in range(rng.randrange(1, 4))]
        for body in self.functions:
            self.durable.functions[hashlib.sha256(body).hexdigest()] = body
        self.sites = {
            f"ep{i}": Site(f"ep{i}", self.clock, rng, rng.randrange(1, 4), self._to_server, self._on_start, agent_class)
            for i in range(rng.randrange(1, 4))
        }
        self.hostile_rng = random.Random(f"hostile {seed}")
        self.hostile: HostileAgent | None = None
        self.lost_after = {name: rng.choice((0, 0, 3_000, 15_000)) if not self.fair else 0 for name in self.sites}
        self.server: Server | None = None
        self._submits = 0
        self.submitted_us: dict[bytes, int] = {}
        self._server_ahead_us: set[int] = set()  # of the clocks with which servers started

    def _add_hostile_agent(self) -> None:
        self.lost_after[NAME] = 0
        functions = list(self.durable.functions)
        self.hostile = HostileAgent(self.clock, self.hostile_rng, self._from_hostile, self._others, functions)

    def _others(self) -> list[bytes]:
        """Tasks of other endpoints than the hostile agent's."""
        return [i for i, place in self.durable.place.items() if place != NAME]

    def _from_hostile(self, parts: list[bytes]) -> None:
        if self.server is not None and self.server.alive:
            self.server.frame(NAME, 0, parts)

    # ------------------------------------------------------------ the network

    def _delay(self) -> int:
        return self.rng.choice((100, 1_000, 1_000, 30_000)) + self.rng.randrange(1_000)

    def _post(self, site: Site, link: int, up: bool, deliver: Callable[[], None]) -> None:
        """In order on one link; between links in any order."""
        if self.rng.random() < self.loss:
            return
        key = (site.name, link, up)
        at = max(self._arrive.get(key, 0), self.clock.now_us + self._delay())
        self._arrive[key] = at
        epoch = (site.name, link)

        def arrive() -> None:
            if epoch not in self.cuts:
                deliver()

        self.clock.at(at, arrive)
        if self.rng.random() < self.double:
            self.clock.at(at + self.rng.randrange(50_000), arrive)

    def _to_server(self, site: Site, parts: list[bytes]) -> None:
        link = site.link
        self._note_frame(f"{site.name} {link} ->", bridge.decode_from_agent, parts)

        def deliver() -> None:
            if self.server is not None and self.server.alive:
                self.server.frame(site.name, link, parts)

        self._post(site, link, True, deliver)

    def _to_site(self, name: str, link: int, parts: list[bytes]) -> None:
        if name == NAME:
            assert self.hostile is not None
            self.clock.after(self.hostile_rng.randrange(5_000), lambda: self.hostile.frame(parts))  # type: ignore[union-attr]
            return
        site = self.sites[name]
        self._note_frame(f"   -> {name} {link}", bridge.decode_from_bridge, parts)
        self._post(site, link, False, lambda: site.frame(link, parts))

    def _note_frame(self, where: str, decoder: Callable[[list[bytes]], Any], parts: list[bytes]) -> None:
        if self.clock.trace is None:
            return
        envelope, body = decoder(parts)
        message, ids = envelope.message, ""
        if isinstance(message, bridge.Heartbeat):
            return
        if isinstance(message, bridge.Dispatch):
            ids = " ".join(t.id.hex()[-16:] for t in decode(list[TaskRecord], body))
        elif isinstance(message, bridge.Results):
            ids = " ".join(f"{e.id.hex()[-16:]}/{e.attempt}:{e.status}" for e in decode(list[Ended], body))
        elif isinstance(message, bridge.Inventory):
            ids = " ".join(f"{i.hex()[-16:]}/{n}" for i, n in bridge.unpack_inventory(body))
        facts = {
            k: getattr(message, k)
            for k in ("seq", "attempt", "granted", "durable_seq", "why", "held")
            if hasattr(message, k)
        }
        session = envelope.session % 1_000_000_000
        self.clock.note(f"{where} {session}:{envelope.n} {type(message).__name__} {facts} {ids}")

    # ------------------------------------------------------------ what happens

    def _on_start(self, task: TaskRecord, attempt: int) -> None:
        assert task.id not in self.promised, f"{task.id.hex()} runs after the word that it will not"
        self.runs[task.id, attempt] += 1
        assert attempt >= 1

    def _start_server(self) -> None:
        if self.server is None or not self.server.alive:
            self.server = Server(
                self.durable, self.clock, self.rng, self.lost_after, self._to_site, self._channel_class
            )
            self.clock.note(f"server starts, epoch {self.durable.claims}")
            self._server_ahead_us.add(self.clock.ahead_us[SERVER])

    def _submit(self) -> None:
        if self.server is None or not self.server.alive:
            return
        rng, now = self.rng, self.server.time.now_us()
        self._submits += 1
        name = rng.choice(list(self.sites))
        body = rng.choice(self.functions)
        function = hashlib.sha256(body).hexdigest() if rng.random() < 0.95 else "ab" * 32
        retry = None
        if rng.random() < 0.5:
            on = rng.choice((("lost", "error"), ("lost",), ("lost", "error", "timeout")))
            retry = StoredRetryPolicy(rng.randrange(1, 4), "exponential", rng.randrange(50, 1_000), 2_000, on)
        call = Call(
            VERSION, function, name, "me", "f", retry=retry,
            timeout_ms=rng.choice((0, 0, 0, 5_000)), expires_us=rng.choice((0, 0, 0, now + EXPIRES_US)),
            priority=self.priority_rng.choice((0, 0, 0, 1, -1)),
        )  # fmt: skip
        ids = derived_ids(self.clock.now_us // 1000, self._submits.to_bytes(8, "big"), rng.choice((1, 1, 3, 12)))
        self.submitted_us |= dict.fromkeys(ids, self.clock.now_us)
        frame = TaskFrame(VERSION, call, now, [TaskRecord(i, self._args(i), ("s", i.hex())) for i in ids])
        self.clock.note(f"submit {len(ids)} to {name}: {ids[0].hex()[-16:]}")
        self.server.submit(name, frame, lambda: self.accepted.update(ids))
        if self.hostile is not None:  # and something for it, so that it has tasks of its own
            own = derived_ids(self.clock.now_us // 1000, b"own" + ids[0], 3)
            call = msgspec.structs.replace(call, endpoint=NAME)
            self.server.submit(
                NAME, TaskFrame(VERSION, call, now, [TaskRecord(i, self._args(i)) for i in own]), lambda: None
            )
        if rng.random() < 0.2:
            some = rng.sample(ids, 1)
            self.clock.after(rng.randrange(2_000_000), lambda: self._cancel(name, some))
        if rng.random() < 0.2:
            for one in ids:
                wait_us = rng.choice((20_000, 100_000, 1_000_000)) + rng.randrange(50_000)
                self.clock.after(wait_us, partial(self._cancel_waiting, name, one))

    def _args(self, task_id: bytes) -> bytes:
        if self.rng.random() < 0.9:
            return b"m\x92\x90\x80"
        blob = b"m" + task_id * 4
        sha = hashlib.sha256(blob).hexdigest()
        if self.rng.random() < 0.9:
            self.durable.blobs[sha] = blob
        return pack_ref(Ref(sha, len(blob)))

    def _cancel(self, name: str, ids: list[bytes]) -> None:
        if self.server is not None and self.server.alive and self.accepted.issuperset(ids):
            self.clock.note(f"cancel {ids[0].hex()[-16:]}")
            self.server.cancel(name, ids)

    def _cancel_waiting(self, name: str, task_id: bytes) -> None:
        if self.server is not None and self.server.alive and task_id in self.accepted:
            begun = self._begun(task_id)

            def promise() -> None:
                assert self._begun(task_id) == begun, f"{task_id.hex()} was sent after it was held back"
                self.promised.add(task_id)

            self.server.cancel_waiting(name, task_id, promise)

    def _begun(self, task_id: bytes) -> int:
        return sum(times for (ran, _), times in self.runs.items() if ran == task_id)

    def _fault(self) -> None:
        rng = self.rng
        site = rng.choice(list(self.sites.values()))
        kind = rng.randrange(7)
        down_us = rng.choice((1_000, 300_000, 4_000_000))
        if kind == 0:
            site.crash()
            self.clock.after(down_us, site.boot)
        elif kind == 1 and self.server is not None:
            self.server.crash()
            self.clock.after(down_us, self._start_server)
        elif kind == 2:
            self.clock.note(f"{site.name}: link {site.link} is cut")
            self.cuts.add((site.name, site.link))
            cut = (site.name, site.link)
            if rng.random() < 0.5:  # it comes back: what was under way is lost
                self.clock.after(down_us, lambda: self.cuts.discard(cut))
        elif kind == 3:
            site.pool.kill_worker(rng)
        elif kind == 4:
            site.crash_chance = rng.choice((0.02, 0.1))
            self.clock.after(1_000_000, lambda: self._calm(site))
        elif kind == 5:
            site.file.room = rng.randrange(2_000)
            site.was_full = True
            self.clock.after(3_000_000, lambda: setattr(site.file, "room", None))
        elif self.server is not None:
            server = self.server
            server.crash_chance, server.store_fails = rng.choice(((0.03, 0.0), (0.0, 0.3)))
            self.clock.after(1_000_000, lambda: self._calm_server(server))

    def _step_clock(self) -> None:
        """A person, or NTP, sets the system clock of a node."""
        node, by_us = self.clock_rng.choice(self._nodes()), self.clock_rng.choice(STEPS_US)
        self.clock.ahead_us[node] += by_us
        self.clock.note(f"{node}: the clock is stepped by {by_us / 1e6:g} s")

    def _nodes(self) -> list[str]:
        return [SERVER, *self.sites]

    def _calm(self, site: Site) -> None:
        site.crash_chance = 0.0
        site.boot()

    def _calm_server(self, server: Server) -> None:
        server.crash_chance = server.store_fails = 0.0
        self._start_server()

    def _make_fair(self) -> None:
        self.clock.note("from here on all is fair")
        if self.hostile is not None:
            self.hostile.stop()
        self.loss = self.double = 0.0
        for site in self.sites.values():
            if (site.name, site.link) in self.cuts:  # a link that is dead stays dead: the agent must notice
                self.clock.note(f"{site.name}: link {site.link} stays dead")
            site.file.room = None
            site.crash_chance = 0.0
            site.boot()
        if self.server is not None:
            self.server.crash_chance = self.server.store_fails = 0.0
        self._start_server()

    # ------------------------------------------------------------ run and check

    def run(self) -> None:
        """Raises AssertionError when something did not hold."""
        rng, clock = self.rng, self.clock
        begin = clock.now_us
        if self.hostile_rng.random() < 0.4 and self._may_be_hostile:
            self._add_hostile_agent()
        self._start_server()
        for site in self.sites.values():
            clock.after(rng.randrange(100_000), site.boot)
        for _ in range(rng.randrange(2, 8)):
            clock.after(rng.randrange(FAULTY_US // 2), self._submit)
        if not self.fair:
            for _ in range(rng.randrange(0, 8)):
                clock.after(rng.randrange(FAULTY_US), self._fault)
        if self.clock_faults:
            for _ in range(self.clock_rng.randrange(1, 8)):
                clock.after(self.clock_rng.randrange(FAULTY_US), self._step_clock)
        clock.at(begin + FAULTY_US + 5_000_000, self._make_fair)
        fair_from = begin + FAULTY_US + 5_000_000
        looked = 0
        while clock.step():
            if clock.now_us > fair_from + 1_000_000 and clock.now_us - looked > 500_000:
                looked = clock.now_us
                if self._quiet():
                    break
                assert clock.now_us < begin + LIMIT_US, f"stuck: {self._open()}"
        self.check()

    def _open(self) -> str:
        tasks = [f"{i.hex()[-16:]} {self.durable.states[i].state.name}" for i in self._open_ids()]
        agents = {n: len(s.agent.queue.held) if s.agent else None for n, s in self.sites.items()}
        return f"open {tasks}, held {agents}"

    def _open_ids(self) -> list[bytes]:
        others = self._others()
        return [i for i in others if not self.durable.states[i].state.closed]

    def _quiet(self) -> bool:
        if self._open_ids() or self._left():
            return False
        return all(
            s.agent is not None and not s.agent.queue.held and not s.agent.outbox.inventory()
            for s in self.sites.values()
        )

    def check(self) -> None:
        for task_id in self.accepted:
            state = self.durable.states[task_id]
            assert state.state.closed, f"{task_id.hex()} is {state.state}"
            closing = [a for a in state.attempts if not a.superseded and a.n == state.attempt]
            assert len(closing) == 1, f"{task_id.hex()} has {len(closing)} outcomes"
            assert state.call is not None
            most = 1 + (state.call.retry.max if state.call.retry else 0)
            assert state.attempt <= most, f"{task_id.hex()} had attempt {state.attempt} of {most}"
            if task_id in self.promised:
                assert state.state is State.CANCELLED, (
                    f"{task_id.hex()} is {state.state} after the word that it is cancelled"
                )
            if state.state is State.SUCCEEDED:
                self._check_value(task_id, closing[0].value, closing[0].n)
        for (task_id, attempt), times in self.runs.items():
            state = self.durable.states.get(task_id)
            if state is not None and state.call is not None:
                most = 1 + (state.call.retry.max if state.call.retry else 0)
                assert attempt <= most, f"{task_id.hex()} was run as attempt {attempt} of {most}"
            assert times == 1 or not self.fair, f"{task_id.hex()} attempt {attempt} ran {times} times without a fault"
        self._check_times()
        assert not self._left(), f"the server thinks that tasks are at the agents: {self._left()}"

    def _check_times(self) -> None:
        """A step of a clock ends no session, and lets nothing expire early.

        A server that starts anew has only its system clock.
        """
        assert not self.fair or not self.clock.silences, "a session ended because of silence, without a fault"
        if len(self._server_ahead_us) > 1:
            return
        for task_id, at_us in self.clock.expired_us.items():
            if task_id not in self.submitted_us:  # the hostile agent's
                continue
            lived_us = at_us - self.submitted_us[task_id]
            assert lived_us >= EXPIRES_US - TOLERANCE_US, f"{task_id.hex()} expired after {lived_us / 1e6:g} s"

    def _left(self) -> list[str]:
        """What the server thinks is at the agents. (Ids that the log does not know stay in `held` until the next session.)"""
        channels = self.server.channels.values() if self.server is not None else ()
        return [
            i.hex()[-16:]
            for channel in channels
            for i in (*channel.in_flight, *channel._agent_tasks.held)
            if i in self.durable.place and channel.endpoint != NAME
        ]

    def _check_value(self, task_id: bytes, value: bytes, attempt: int) -> None:
        ref = ref_of(value)
        if ref is not None:
            value = self.durable.blobs[ref.sha256]
        assert value == content_of(task_id), f"{task_id.hex()} has a wrong value"
        assert behaviour(task_id, attempt)[0] == OK
