"""Frames of the bridge at random: to a channel, to an agent, and to a real server's socket."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncue import curve
from oncue.dispatcher.bridge.effects import CheckTasks, ForwardReport, ReadPart, WritePart
from oncue.endpoint.agent.session import SessionPhase
from oncue.errors import Undecodable
from oncue.protocol import bridge
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import OK, Ended
from oncue.protocol.reports import Report
from tests.e2e.running import System
from tests.security.hostile_agent import HostileAgent
from tests.unit.dispatcher.bridge.test_channel import CALL, TASKS, Harness
from tests.unit.endpoint.agent.test_agent import CALL as AGENT_CALL
from tests.unit.endpoint.agent.test_agent import Bench, task

FEW = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([1 << 31, 1 << 53, (1 << 62), (1 << 63) - 1, (1 << 64) - 1, -(1 << 63)])
)
SCALARS = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.sampled_from(["a" * 64, "../../etc/passwd", "\x1b[2J", "x" * 5_000, "f" * 63 + "\n"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
IDS = st.one_of(st.sampled_from([t.id for t in TASKS]), st.binary(max_size=20))
ENDS = st.lists(
    st.tuples(IDS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=300), st.binary(max_size=300), st.none()),
    max_size=5,
)


def kinds(union: Any) -> list[tuple[str, int]]:
    """Return (tag, number of fields) of the messages of a union."""
    return [(str(m.__struct_config__.tag), len(m.__struct_fields__)) for m in get_args(union)]


@st.composite
def messages(draw: st.DrawFn, union: Any) -> list[Any]:
    """Return a message of the union's, or of no kind, most often with the right number of fields."""
    tag, fields = draw(st.sampled_from([*kinds(union), ("no-such-kind", 2)]))
    count = draw(st.one_of(st.just(fields), st.integers(0, 15)))
    return [tag, *draw(st.lists(VALUES, min_size=count, max_size=count))]


BODIES = st.one_of(
    st.none(), st.binary(max_size=200), ENDS.map(encode), VALUES.map(encode), st.lists(IDS, max_size=9).map(b"".join)
)
RAW = st.lists(st.one_of(st.binary(max_size=200), VALUES.map(encode)), max_size=4)


def parts(session: object, n: object, message: object, body: bytes | None) -> list[bytes]:
    head = encode([session, n, 0, message])
    return [head] if body is None else [head, body]


@FEW
@given(st.lists(st.one_of(st.tuples(messages(bridge.FromAgent), BODIES), RAW), min_size=1, max_size=12))
def test_no_frame_breaks_a_channel(frames: list[Any]) -> None:
    h = Harness()
    h.connect()
    channel = h.channel
    for frame in frames:
        made = frame if isinstance(frame, list) else parts(9, channel._session.expected, *frame)
        with contextlib.suppress(Undecodable):
            channel.on_frame(made, 2_000_000)
        for effect in channel.drain():
            if isinstance(effect, CheckTasks):
                channel.on_checked(effect.token, {t.id: CALL for t in TASKS})
            elif isinstance(effect, ForwardReport):
                with contextlib.suppress(Undecodable):
                    decode(Report, effect.body)  # type: ignore[arg-type]
            elif isinstance(effect, ReadPart | WritePart):
                assert 0 <= effect.offset_bytes <= bridge.BLOB_BYTES
        assert set(channel.in_flight) <= {t.id for t in TASKS}
        channel.tick(2_000_000)
        channel.drain()
    # A good agent goes on where they ended.
    h.n, before = 0, len(h.messages)
    head = bridge.Hello(bridge.PROTOCOL, "0", "3.11", "host", 1, b"B" * 8, b"j" * 8, 2, 0)
    channel._session.number = min(channel._session.number, 1 << 62)
    channel.on_frame([encode(bridge.AgentEnvelope((1 << 62) + 1, 0, 0, head))], 9_000_000)
    h.run_effects()
    assert any(isinstance(e.message, bridge.Welcome | bridge.Refuse) for e in h.messages[before:])


@FEW
@given(ENDS)
def test_results_are_stored_within_their_types_or_refused(ends: list[Any]) -> None:
    h = Harness()
    h.connect()
    with contextlib.suppress(Undecodable):
        h.channel.on_frame(parts(9, h.n, ["results", 1, len(ends), encode(CALL), 1, 1], encode(ends)), 2_000_000)
    h.run_effects()
    for store in h.stores:
        for e in decode(list[Ended], msgspec.msgpack.encode(store.closing)):
            assert 0 <= e.status <= 6
            assert 1 <= e.attempt < 1 << 31


@FEW
@given(st.lists(st.one_of(st.tuples(messages(bridge.FromBridge), BODIES), RAW), min_size=1, max_size=12))
def test_no_frame_breaks_an_agent(frames: list[Any]) -> None:
    b = Bench().connect()
    b.dispatch(task(1))
    for frame in frames:
        session = b.agent.session
        made = frame if isinstance(frame, list) else parts(session.number, session.expect, *frame)
        try:
            b.agent.on_message(made, b.now_us)
        except Undecodable:
            b.agent.disconnect("cannot be read", b.now_us)
        b.turn()
    b.finish(*[t for t in [task(1)] if t.id in b.agent.queue.held])
    if b.agent.refused:
        return
    b.now_us += 60_000_000  # it dials again, and the result that it has is not lost
    b.turn()
    assert b.agent.phase in (SessionPhase.HANDSHAKE, SessionPhase.CONNECTED)


@FEW
@given(st.binary(max_size=400))
def test_bodies_are_decoded_or_refused(body: bytes) -> None:
    for read in (bridge.decode_ends, bridge.unpack_inventory, bridge.unpack_ids):
        with contextlib.suppress(Undecodable):
            read(body)


def test_a_dispatch_that_is_not_what_it_says_ends_the_session() -> None:
    b = Bench().connect()
    for count, tasks in ((5, [task(1)]), (1, [msgspec.structs.replace(task(1), id=b"short")])):
        with pytest.raises(Undecodable):
            b.hear(bridge.Dispatch(AGENT_CALL, 1, count, 3), encode(tasks))
    assert not b.agent.queue.held


# ---------------------------------------------------------------- a real server


def test_a_server_survives_frames_at_random(system: System) -> None:
    keys, chance = curve.make_keys(), random.Random(7)
    body = {"name": "random", "public_key": keys.public.decode()}
    registered = system.http("POST", "/v1/endpoints", body).json
    words = [
        encode(m) for m in (["beat", 1], ["credit", 5], ["want", "a" * 64, 0], ["put", "a" * 64, 0, 9], ["report"])
    ]
    ended = encode([Ended(b"x" * 16, 1, OK)])

    with HostileAgent(registered["bridge"], registered["server_key"].encode(), keys) as agent:
        for round_ in range(40):
            agent.hello(held=round_ % 2, seconds=0.05)
            for _ in range(50):
                head = encode([agent.session, agent.n, 0, msgspec.Raw(chance.choice(words))])
                damaged = bytearray(head)
                for _ in range(chance.randrange(3)):
                    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                agent.raw([bytes(damaged), chance.choice([b"", ended, chance.randbytes(50)])])
                agent.n += 1
        agent.hear(1.0)

    said = Path(system.data / "server.log").read_text()
    assert system.http("GET", "/health/live").status == 200
    assert "Traceback" not in said, said[-3_000:]
    assert len(said.splitlines()) < 120
