"""The consumer group by which servers divide the endpoints, by Kafka's rules: who is silent for a session is out; a new
division waits for the word of all who are in; until a member has rejoined nobody is given what it has."""

from __future__ import annotations

import random
from typing import Protocol

from tests.simulation.clock import Clock

SESSION_US, HEARTBEAT_US = 6_000_000, 2_000_000
MARGIN = 0.85  # oncue.log.kafka.assignment


class Member(Protocol):
    name: str
    alive: bool
    paused: bool

    def rejoin(self) -> None: ...

    def given(self, endpoints: frozenset[str], turn: int) -> None: ...


class Group:
    def __init__(self, clock: Clock, rng: random.Random, endpoints: list[str]) -> None:
        self._clock, self._rng, self._endpoints = clock, rng, endpoints
        self._heard: dict[str, int] = {}
        self._members: dict[str, Member] = {}
        self._has: dict[str, frozenset[str]] = {}
        self._deciding = False
        self._generation = 0
        self._joined: set[str] = set()
        self._look()

    def join(self, member: Member) -> None:
        self._members[member.name] = member
        self._heard[member.name] = self._clock.now_us
        self._decide()

    def heartbeat(self, member: Member) -> bool:
        """False: the group does not know it (any more), so it must join anew."""
        if member.name not in self._members:
            return False
        self._heard[member.name] = self._clock.now_us
        if self._deciding and member.name not in self._joined:
            member.rejoin()
            self._joined.add(member.name)
            self._perhaps()
        return True

    def leave(self, member: Member) -> None:
        if self._members.pop(member.name, None) is not None:
            self._decide()

    def _look(self) -> None:
        gone = [n for n, at in self._heard.items() if n in self._members and self._clock.now_us - at > SESSION_US]
        for name in gone:
            self._clock.note(f"group: {name} is out")
            del self._members[name]
        if gone:
            self._decide()
        self._clock.after(100_000, self._look)

    def _decide(self) -> None:
        self._deciding, self._joined = True, set()

    def _perhaps(self) -> None:
        if not self._deciding or not self._joined.issuperset(self._members):
            return
        self._deciding = False
        names = sorted(self._members)
        if not names:
            return
        most = -(-len(self._endpoints) // len(names))
        has: dict[str, set[str]] = {n: set() for n in names}
        left = []
        for endpoint in self._endpoints:  # who has one keeps it, where that is even
            old = next((n for n in names if endpoint in self._has.get(n, ()) and len(has[n]) < most), None)
            if old is not None and self._rng.random() < 0.9:
                has[old].add(endpoint)
            else:
                left.append(endpoint)
        for endpoint in left:
            has[min(names, key=lambda n: (len(has[n]), self._rng.random()))].add(endpoint)
        self._has = {n: frozenset(e) for n, e in has.items()}
        for name, endpoints in self._has.items():
            self._clock.note(f"group: {name} is given {sorted(endpoints)}")
            member = self._members[name]
            self._generation += 1
            pause, turn = self._rng.randrange(100, 300_000), self._generation
            self._clock.after(pause, lambda m=member, e=endpoints, t=turn: m.given(e, t))
