"""An endpoint has one agent: a second process is fenced while the first one is alive."""

from __future__ import annotations

import pytest

from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase, SendFrame
from oncue.protocol import bridge

S = 1_000_000
A, B, C = b"a" * 8, b"b" * 8, b"c" * 8


class Server:
    """A channel, and the answers to each message."""

    def __init__(self) -> None:
        self.channel = EndpointChannel("ep", 1, "srv", "0")

    def say(self, at_s: float, session: int, n: int, message: bridge.FromAgent) -> list[bridge.FromBridge]:
        head = bridge.encode(bridge.AgentEnvelope(session, n, 0, message))
        self.channel.on_frame([head], int(at_s * S))
        return self.answers()

    def answers(self) -> list[bridge.FromBridge]:
        sent = [e.parts for e in self.channel.drain() if isinstance(e, SendFrame)]
        return [bridge.decode_from_bridge(parts)[0].message for parts in sent]

    def hello(self, at_s: float, session: int, boot: bytes, after: bytes | None = b"") -> list[bridge.FromBridge]:
        host = {A: "login1", B: "login2"}.get(boot, "login3")
        hello = bridge.Hello(bridge.PROTOCOL, "0", "3.11", host, 7, boot, b"j" * 8, 2, 0, after=after)
        return self.say(at_s, session, 0, hello)


def kinds(messages: list[bridge.FromBridge]) -> list[str]:
    return [type(m).__name__ for m in messages]


@pytest.fixture
def server() -> Server:
    found = Server()
    assert kinds(found.hello(1, 10, A)) == ["Welcome"]
    return found


def test_a_second_agent_waits_until_the_first_has_spoken_and_is_refused_then(server: Server) -> None:
    (wait,) = server.hello(2, 20, B)
    assert isinstance(wait, bridge.Redirect)
    assert "host login1, pid 7" in wait.why
    assert server.channel.stray, "the first agent's connection is kept"

    assert server.say(2, 20, 1, bridge.Inventory(True)) == []

    server.say(2.1, 10, 1, bridge.Heartbeat(0))  # it may have been on its way while its agent died
    assert not server.channel.stray
    assert kinds(server.hello(2.5, 21, B)) == ["Redirect"]
    for n in (2, 3, 4):
        server.say(2.1 + 2 * n, 10, n, bridge.Heartbeat(0))
    (refusal,) = server.hello(10.5, 22, B)

    assert isinstance(refusal, bridge.Refuse)
    assert refusal.code == "other-agent"
    assert "host login1, pid 7" in refusal.message
    assert "oncue endpoint stop" in refusal.remedy
    assert server.channel.phase is ChannelPhase.READY
    assert server.channel.hello is not None
    assert server.channel.hello.boot == A


def test_a_second_agent_takes_over_from_a_silent_one_which_is_fenced_then(server: Server) -> None:
    assert kinds(server.hello(2, 20, B)) == ["Redirect"]
    server.channel.tick(int(9.5 * S))
    server.answers()

    assert kinds(server.hello(9.6, 22, B)) == ["Welcome"]

    assert server.say(10, 10, 1, bridge.Heartbeat(0)) == []  # the first one comes back
    assert server.channel.stray
    assert kinds(server.hello(11, 30, A)) == ["Redirect"]
    for n in range(1, 5):
        server.say(11 + 2 * n, 22, n, bridge.Heartbeat(0))
    assert kinds(server.hello(19.5, 31, A)) == ["Refuse"]


def test_after_a_bye_the_next_agent_begins_at_once(server: Server) -> None:
    server.say(2, 10, 1, bridge.Bye("SIGTERM"))

    assert kinds(server.hello(2.1, 20, B)) == ["Welcome"]


def test_the_successor_of_a_killed_agent_begins_at_once(server: Server) -> None:
    assert kinds(server.hello(2, 20, B, after=A)) == ["Welcome"]
    assert kinds(server.hello(2.5, 30, C, after=A)) == ["Redirect"]  # its predecessor is not the present one


def test_an_agent_that_says_hello_again_is_no_second_one(server: Server) -> None:
    assert kinds(server.hello(2, 20, A)) == ["Welcome"]


def test_an_agent_of_a_former_version_begins_at_once(server: Server) -> None:
    assert kinds(server.hello(2, 20, B, after=None)) == ["Welcome"]


def test_a_third_agent_is_measured_by_its_own_arrival(server: Server) -> None:
    assert kinds(server.hello(2, 20, B)) == ["Redirect"]
    for n in range(1, 5):
        server.say(2 + 2 * n, 10, n, bridge.Heartbeat(0))

    assert kinds(server.hello(10.5, 30, C)) == ["Redirect"], "nothing was heard since it came"
