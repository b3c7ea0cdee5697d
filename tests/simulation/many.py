"""One seed with several servers: as world.py, and servers are killed, stopped, continued and added."""

from __future__ import annotations

from collections.abc import Callable

from oncue.clocks.process import ProcessClock
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.endpoint.agent.agent import Agent
from oncue.endpoint.agent.effects import Connect
from oncue.protocol import bridge
from oncue.protocol.records import Ended
from tests.simulation.group import Group
from tests.simulation.member import Member
from tests.simulation.site import Site
from tests.simulation.topics import Fold, Topics
from tests.simulation.world import World

MOST_SERVERS = 4


class ManyWorld(World):
    _may_be_hostile = False

    def __init__(
        self,
        seed: int,
        trace: Callable[[str], None] | None = None,
        agent_class: type[Agent] = Agent,
        channel_class: type[EndpointChannel] = EndpointChannel,
        member_class: type[Member] = Member,
        clock_class: type[ProcessClock] = ProcessClock,
    ) -> None:
        super().__init__(seed, trace, agent_class, channel_class, clock_class)
        self.topics = Topics()
        self.topics.announces_servers = seed % 2 == 1  # in the others no such message comes between the rest
        self.topics.functions = self.durable.functions
        self.topics.blobs = self.durable.blobs
        self.group = Group(self.clock, self.rng, list(self.sites))
        self.members: list[Member] = []
        self._member_class = member_class
        self.published: dict[bytes, list[tuple[str, Ended]]] = {}
        self._target: dict[tuple[str, int], str] = {}  # (site, link) -> server
        self._next: dict[str, int] = {}
        for site in self.sites.values():
            site.on_dial = self._on_dial

    # ------------------------------------------------------------ servers

    def _running(self) -> list[Member]:
        return [m for m in self.members if m.alive and not m.paused]

    def _add(self) -> None:
        if len([m for m in self.members if m.alive]) >= MOST_SERVERS:
            return
        name = f"s{len(self.members)}"
        self.clock.note(f"{name} starts")
        self.members.append(
            self._member_class(
                name, self.topics, self.group, self.clock, self.rng, self.lost_after, self._to_agent, self._on_published,
                self._channel_class,
            )
        )  # fmt: skip

    def _start_server(self) -> None:
        while len([m for m in self.members if m.alive]) < 2:
            self._add()

    def _on_published(self, server: str, e: Ended) -> None:
        self.published.setdefault(e.id, []).append((server, e))

    def _nodes(self) -> list[str]:
        return [*(m.name for m in self.members), *self.sites]

    # ------------------------------------------------------------ the network

    def _on_dial(self, site: Site, dial: Connect) -> None:
        known = [m.name for m in self.members if m.alive]
        if dial.bridge:
            target = dial.bridge
        else:
            self._next[site.name] = self._next.get(site.name, -1) + 1
            target = known[self._next[site.name] % len(known)] if known else ""
        self._target[site.name, site.link] = target
        member = self._member(target)
        if member is None or not member.alive:  # nobody answers there: the socket says so
            link = site.link
            self.clock.after(self._delay(), lambda: self._cut(site, link))

    def _cut(self, site: Site, link: int) -> None:
        if site.link == link:
            site.input(lambda agent: agent.disconnect("closed", site.time.now_us()))

    def _member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    def _to_server(self, site: Site, parts: list[bytes]) -> None:
        link = site.link
        member = self._member(self._target.get((site.name, link), ""))
        self._note_frame(f"{site.name} {link} -> {member.name if member else '?'}", bridge.decode_from_agent, parts)
        if member is not None:
            self._post(site, link, True, lambda: member.frame(site.name, link, parts) if member.alive else None)

    def _to_agent(self, server: str, name: str, link: int, parts: list[bytes]) -> None:
        site = self.sites[name]
        self._note_frame(f"   {server} -> {name} {link}", bridge.decode_from_bridge, parts)
        if self._target.get((name, link)) == server:
            self._post(site, link, False, lambda: site.frame(link, parts))

    # ------------------------------------------------------------ what happens

    def _submit(self) -> None:
        running = self._running()
        if running:
            self.server = self.rng.choice(running)
            super()._submit()

    def _cancel(self, name: str, ids: list[bytes]) -> None:
        running = self._running()
        if running:
            self.server = self.rng.choice(running)
            super()._cancel(name, ids)

    def _cancel_waiting(self, name: str, task_id: bytes) -> None:
        running = self._running()
        if running:
            self.server = self.rng.choice(running)
            super()._cancel_waiting(name, task_id)

    def _fault(self) -> None:
        rng = self.rng
        running = self._running()
        kind = rng.randrange(6)
        if kind == 0 and running:
            member = rng.choice(running)
            member.crash()
            self._hang_up(member)
            self.clock.after(rng.choice((1_000, 1_000_000, 9_000_000)), self._start_server)
        elif kind in (1, 2) and running:
            member = rng.choice(running)
            member.pause()
            self.clock.after(rng.choice((500_000, 5_000_000, 7_000_000, 12_000_000)), member.go_on)
        elif kind == 3:
            self._add()
        else:
            self.server = rng.choice(running) if running else None
            super()._fault()
            if self.server is not None and not self.server.alive:
                self._hang_up(self.server)  # type: ignore[arg-type]

    def _hang_up(self, member: Member) -> None:
        """The kernel closes what a dead process had open."""
        for site in self.sites.values():
            if self._target.get((site.name, site.link)) == member.name and self.rng.random() < 0.9:
                link = site.link
                self.clock.after(self._delay(), lambda s=site, n=link: self._cut(s, n))

    def _make_fair(self) -> None:
        for member in self.members:
            member.go_on()
            member.crash_chance = member.store_fails = 0.0
        self.server = None
        super()._make_fair()

    # ------------------------------------------------------------ check

    def _open_ids(self) -> list[bytes]:
        fold = Fold(self.topics).apply_all()
        return [i for i, s in fold.states.items() if s.known and not s.state.closed]

    def _open(self) -> str:
        channels = {m.name: sorted(m.channels) for m in self.members if m.alive}
        agents = {n: len(s.agent.queue.held) if s.agent else None for n, s in self.sites.items()}
        return f"open {[i.hex()[-16:] for i in self._open_ids()]}, held {agents}, channels {channels}"

    def _left(self) -> list[str]:
        channels = [channel for m in self.members if m.alive for channel in m.channels.values()]
        fold = Fold(self.topics).apply_all()
        return [
            i.hex()[-16:]
            for channel in channels
            for i in (*channel.in_flight, *channel._agent_tasks.held)
            if i in fold.place
        ]

    def _quiet(self) -> bool:
        acting = [e for m in self.members if m.alive for e in m.channels]
        return sorted(acting) == sorted(self.sites) and super()._quiet() and not self._untaught()

    def _untaught(self) -> list[str]:
        """Sites whose agents know other servers than there are."""
        servers = Fold(self.topics).apply_all().servers()
        return [name for name, site in self.sites.items() if site.servers != servers]

    def check(self) -> None:
        fold = Fold(self.topics).apply_all()
        self.durable.states = fold.states
        super().check()
        acting = [e for m in self.members if m.alive for e in m.channels]
        assert sorted(acting) == sorted(self.sites), f"each endpoint has one owner, but there are {sorted(acting)}"
        assert not self._untaught(), f"the agents of {self._untaught()} do not know which servers there are"
        for member in self.members:
            if member.alive:
                member.fold.apply_all()
                assert {i: s for i, s in member.fold.states.items() if s.known} == {
                    i: s for i, s in fold.states.items() if s.known
                }, f"{member.name} gives other answers"
        for task_id, ends in self.published.items():
            state = fold.states[task_id]
            closing = state.closing
            for server, e in ends:
                assert closing is not None, f"{e} was published by {server}, and the task is open in the log"
                assert closing.same_as(e), f"{e} was published by {server}, and the log has {closing}"
