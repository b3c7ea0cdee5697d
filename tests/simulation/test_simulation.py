"""Many seeds hold; and bugs that are put in on purpose are found."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from oncue.clocks.process import ProcessClock
from oncue.dispatcher.bridge.agent_clock import AgentClock
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.message_numbers import MessageNumbers
from oncue.endpoint.agent.agent import Agent
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode
from oncue.protocol.records import Call, Ended
from tests.simulation.many import ManyWorld
from tests.simulation.member import Member
from tests.simulation.mutants import first_that_fails
from tests.simulation.world import World

SEEDS, BUNCH = 1_500, 100
MUTANT_SEEDS = 250


@pytest.mark.parametrize("first", range(0, SEEDS, BUNCH))
def test_seeds_hold(first: int) -> None:
    for seed in range(first, first + BUNCH):
        try:
            World(seed).run()
        except AssertionError as e:
            raise AssertionError(f"{e} (python -m tests.simulation --seed {seed} --trace)") from e


MANY_SEEDS, MANY_BUNCH = 600, 50


@pytest.mark.parametrize("first", range(0, MANY_SEEDS, MANY_BUNCH))
def test_seeds_hold_with_several_servers(first: int) -> None:
    for seed in range(first, first + MANY_BUNCH):
        try:
            ManyWorld(seed).run()
        except AssertionError as e:
            raise AssertionError(f"{e} (python -m tests.simulation --many --seed {seed} --trace)") from e


def test_a_seed_repeats() -> None:
    def lines(seed: int) -> list[str]:
        out: list[str] = []
        World(seed, out.append).run()
        return out

    assert lines(11) == lines(11)
    assert lines(11) != lines(12)


# ---------------------------------------------------------------- bugs on purpose


class ForgetsBeforeAck(Agent):
    """Takes a result as safe once it is sent."""

    def _send_results(self) -> None:
        super()._send_results()
        if self.outbox.spool:
            self.outbox.on_ack(next(reversed(self.outbox.spool)))


class AcceptsDuplicates(Agent):
    """Does not look at the numbers of messages."""

    def on_message(self, parts: list[bytes], now_us: int) -> None:
        envelope, _ = bridge.decode_from_bridge(parts)
        if envelope.n >= 0:
            self.session.expect = min(self.session.expect, envelope.n)
        super().on_message(parts, now_us)


class IgnoresGaps(Agent):
    """Goes on after a lost message."""

    def on_message(self, parts: list[bytes], now_us: int) -> None:
        envelope, _ = bridge.decode_from_bridge(parts)
        if envelope.session == self.session.number:
            self.session.expect = max(self.session.expect, envelope.n)
        super().on_message(parts, now_us)


class NoInventory(EndpointChannel):
    """Sends out again what it had sent, without looking at what the agent holds."""

    def _on_inventory(self, message: bridge.Inventory, body: bytes) -> None:
        super()._on_inventory(message, b"")


class AcksTooEarly(EndpointChannel):
    """Acks results as soon as they came, before they are durable."""

    def _on_results(self, message: bridge.Results, body: bytes) -> None:
        super()._on_results(message, body)
        self._acks.durable_seq = max(self._acks.durable_seq, message.seq)
        self._send(bridge.Ack(message.seq))


class NeverHolds(EndpointChannel):
    """Says that a task waits and will not be sent, and sends it."""

    def hold(self, task_id: bytes) -> bool:
        return not self.at_agent(task_id)


@pytest.mark.parametrize(
    ("agent", "channel"),
    [
        (Agent, NeverHolds),
        (ForgetsBeforeAck, EndpointChannel),
        (AcceptsDuplicates, EndpointChannel),
        (IgnoresGaps, EndpointChannel),
        (Agent, NoInventory),
        (Agent, AcksTooEarly),
    ],
)
def test_a_bug_on_purpose_is_found(agent: type[Agent], channel: type[EndpointChannel]) -> None:
    first_that_fails(lambda seed: World(seed, agent_class=agent, channel_class=channel), range(MUTANT_SEEDS))


class SystemTime(ProcessClock):
    """Silence, pauses and expiry by the system clock."""

    def now_us(self) -> int:
        return self._system_ns() // 1_000


class TrustsTimes(EndpointChannel):
    """Takes the times of agents' results as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_clock = NoCorrection()


class NoCorrection(AgentClock):
    def correct(self, ends: list[Ended], body: bytes, now_us: int) -> tuple[list[Ended], bytes]:
        return ends, body


class SessionsInOrder(EndpointChannel):
    """Refuses a session whose number is lower than that of an earlier process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session = HigherOnly()


class HigherOnly(MessageNumbers):
    def is_next(self, number: int, hello: bridge.Hello, away: bool) -> bool:
        return number > self.number

    def is_behind(self, number: int, hello: bridge.Hello) -> bool:
        return False


class ExpiresByOwnClock(Agent):
    """Compares a server's times with its own."""

    def _server_us(self) -> int:
        return self.now_us


@pytest.mark.parametrize(
    ("agent", "channel", "clock", "seeds"),
    [
        (Agent, EndpointChannel, SystemTime, range(MUTANT_SEEDS)),
        (Agent, TrustsTimes, ProcessClock, range(300, 500)),  # one seed of some 200
        (Agent, SessionsInOrder, ProcessClock, range(MUTANT_SEEDS)),
        (ExpiresByOwnClock, EndpointChannel, ProcessClock, range(MUTANT_SEEDS)),
    ],
)
def test_a_wrong_use_of_clocks_is_found(
    agent: type[Agent], channel: type[EndpointChannel], clock: type[ProcessClock], seeds: range
) -> None:
    first_that_fails(lambda seed: World(seed, agent_class=agent, channel_class=channel, clock_class=clock), seeds)


class BelievesIds(EndpointChannel):
    """Stores results of whatever tasks an agent names."""

    def on_checked(self, token: int, calls: Mapping[bytes, Call]) -> None:
        waiting = self._unmatched._waiting.get(token)
        if waiting is not None:
            with contextlib.suppress(Undecodable):
                calls = dict.fromkeys((e.id for e in waiting[1]), decode(Call, waiting[0].call))
        super().on_checked(token, calls)


def test_results_of_others_tasks_are_found_if_they_count() -> None:
    # It takes a lie about a task that is not in flight just then: about one seed in a thousand has one.
    seeds = range(2_600, 2_850)
    assert first_that_fails(lambda seed: World(seed, channel_class=BelievesIds), seeds).hostile is not None


def test_hostile_agents_are_heard_in_many_seeds() -> None:
    worlds = [World(seed) for seed in range(20)]
    for world in worlds:
        world.run()
    assert sum(w.hostile.frames for w in worlds if w.hostile is not None) > 1_000


class NoFence(EndpointChannel):
    """Its own ends count for ever."""

    def _store(self, *args: Any, **kwargs: Any) -> None:
        epoch, self.epoch = self.epoch, 0
        super()._store(*args, **kwargs)
        self.epoch = epoch


class AlwaysExclusive(Member):
    """Tells of what it stored, whoever may have ended it before."""

    def is_exclusive(self, endpoint: str) -> bool:
        return True


# That these matter is rare, one seed of hundreds: so they are looked for where they are.
@pytest.mark.parametrize(
    ("channel", "member", "seeds"),
    [(NoFence, Member, range(400, 500)), (EndpointChannel, AlwaysExclusive, range(400, 500))],
)
def test_a_bug_on_purpose_is_found_with_several_servers(
    channel: type[EndpointChannel], member: type[Member], seeds: range
) -> None:
    first_that_fails(lambda seed: ManyWorld(seed, channel_class=channel, member_class=member), seeds)
