"""Every message that an agent may send, from everybody who is not the endpoint that it is about.

The messages come from the protocol's union: a new one needs its row in MESSAGES.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from oncue import curve
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended
from oncue.protocol.reports import Output, Started, Usage
from tests.security.hostile_agent import HostileAgent, Received
from tests.security.world import OWNER, STRANGER, World

Maker = Callable[..., HostileAgent]
Said = tuple[bridge.FromAgent, bytes | None]
FORGED = "zqmark-forged"
LEAKS = (b"zqmark-value", b"zqmark-output", b"zqmark-doc", b"zqmark-blob")  # of the owner's function and blob


def _task(world: World, kind: str = "waiting") -> bytes:
    return bytes.fromhex(world.ids[kind])


def _call(world: World, endpoint: str) -> bytes:
    return encode(Call(VERSION, world.ids["function"], endpoint, OWNER, "zqmark_fn", stream="zqmark-stream"))


def _results(world: World) -> list[Said]:
    found: list[Said] = []
    for seq, kind in enumerate(("waiting", "task")):
        ended = [Ended(_task(world, kind), 1, OK, 1, 2, encode(FORGED), FORGED.encode())]
        for endpoint in (world.ids["idle"], world.ids["endpoint"], world.ids["strangers"]):
            call = _call(world, endpoint)
            found.append((bridge.Results(3 * seq, 1, call, 1, 10), encode(ended)))
    return [(bridge.Results(i, m.count, m.call, 1, 10), body) for i, (m, body) in enumerate(found)]  # type: ignore[union-attr]


def _reports(world: World) -> list[Said]:
    waiting, idle = _task(world), world.ids["idle"]
    reports = (
        Started(VERSION, idle, ((waiting, 1, 5),), FORGED),
        Output(VERSION, idle, waiting, 1, 0, FORGED.encode()),
        Output(VERSION, idle, _task(world, "task"), 1, 0, FORGED.encode()),
        Usage(VERSION, idle, time.time_ns() // 1000, 77, 77, 77, 77, FORGED),
        Usage(VERSION, world.ids["endpoint"], time.time_ns() // 1000, 77, 77, 77, 77, FORGED),
    )
    return [(bridge.ReportFrame(), encode(report)) for report in reports]


def _fetches(world: World) -> list[Said]:
    names = ("../keys", "", "x" * 64)
    return [(bridge.FetchPart(name, offset), None) for name in names for offset in (0, 10)]


def _uploads(world: World) -> list[Said]:
    name, wrong = world.ids["blob"], b"x" * 100
    return [
        (bridge.UploadPart(name, 0, len(wrong)), wrong),
        (bridge.UploadPart(world.ids["function"], 0, len(wrong)), wrong),
        (bridge.UploadPart("../../" + name, 0, len(wrong)), wrong),
    ]


#: What is said about the owner's objects, by the type of the message.
MESSAGES: dict[type, Callable[[World], list[Said]]] = {
    bridge.Hello: lambda w: [],  # said by every peer here
    bridge.Inventory: lambda w: [
        (bridge.Inventory(last=True), bridge.pack_inventory([(_task(w), 1), (_task(w, "task"), 1)]))
    ],
    bridge.Results: _results,
    bridge.Credit: lambda w: [(bridge.Credit(1_000), None)],
    bridge.FetchPart: _fetches,
    bridge.UploadPart: _uploads,
    bridge.ReportFrame: _reports,
    bridge.Bye: lambda w: [(bridge.Bye(FORGED), None)],
    bridge.Heartbeat: lambda w: [(bridge.Heartbeat(1), None)],
}


def test_every_message_has_its_row() -> None:
    assert set(get_args(bridge.FromAgent)) == set(MESSAGES)


# ---------------------------------------------------------------- who is asked for


def _register(world: World, subject: str, name: str, keys: curve.Keys) -> dict[str, Any]:
    # The server is shared by several modules' peers.
    body = {"name": f"{name}-{os.urandom(3).hex()}", "public_key": keys.public.decode()}
    reply = world.send("POST", "/v1/endpoints", body, token=world.tokens[subject, "user"])
    assert reply.status == 201, reply
    return dict(reply.json)


@pytest.fixture(scope="module")
def peers(world: World) -> Iterator[dict[str, Maker]]:
    """Makers of peers by what they are."""
    strangers, revoked = curve.make_keys(), curve.make_keys()
    registered = _register(world, STRANGER, "hostile", strangers)
    gone = _register(world, STRANGER, "revoked", revoked)
    world.send("DELETE", f"/v1/endpoints/{gone['id']}", token=world.tokens[STRANGER, "user"])
    world.ids["idle"] = world.made("GET", "/v1/endpoints/zqmark-idle")["id"]
    strangers_id = registered["id"]
    address, key = registered["bridge"], registered["server_key"].encode()
    # The stranger's own endpoint may be named in its own frames: it is not the owner's.
    world.ids["strangers"] = strangers_id
    yield {
        "an unknown key": lambda: HostileAgent(address, key),
        "a revoked key": lambda: HostileAgent(address, key, revoked),
        "no key": lambda: HostileAgent(address, key, plain=True),
        "another owner's endpoint": lambda **options: HostileAgent(address, key, strangers, **options),
    }
    del world.ids["strangers"]


def everything(world: World) -> dict[str, Any]:
    """Return what the owner sees of their objects."""
    found: dict[str, Any] = world.state()
    for kind in ("task", "waiting"):
        found[kind] = world.made("GET", f"/v1/tasks/{world.ids[kind]}")
        found[kind + " timeline"] = world.made("GET", f"/v1/tasks/{world.ids[kind]}/timeline")
        token = world.tokens[OWNER, "user"]
        found[kind + " logs"] = world.send("GET", f"/v1/tasks/{world.ids[kind]}/logs", token=token).body
    for name in ("zqmark-ep", "zqmark-idle"):
        shown = world.made("GET", f"/v1/endpoints/{name}")
        found[name] = {k: shown[k] for k in ("state", "since_us", "workers", "host", "why")}
    blob = world.send("GET", f"/v1/blobs/{world.ids['blob']}", token=world.tokens[OWNER, "user"])
    found["blob"] = hashlib.sha256(blob.body).hexdigest()
    return found


def told(received: list[Received]) -> bytes:
    return b"".join(bridge.encode(message) + body for message, body in received)


@pytest.mark.parametrize("who", ["an unknown key", "a revoked key", "no key"])
def test_a_peer_without_a_good_key_is_not_heard(world: World, peers: dict[str, Maker], who: str) -> None:
    before = everything(world)

    with peers[who]() as peer:
        received = peer.hello(seconds=1.0)
        for said in MESSAGES.values():
            for message, body in said(world):
                with contextlib.suppress(Exception):  # the connection may be gone
                    peer.say(message, body)
        received += peer.hear(1.0)

    assert not [m for m, _ in received if not isinstance(m, bridge.Refuse)], received
    assert b"zqmark" not in told(received)
    assert everything(world) == before


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda k: k.__name__)
def test_another_owners_endpoint_learns_and_changes_nothing(world: World, peers: dict[str, Maker], kind: type) -> None:
    before = everything(world)

    with peers["another owner's endpoint"]() as peer:
        said = MESSAGES[kind](world)
        received = peer.hello(held=2 if kind is bridge.Inventory else 0)
        for message, body in said:
            peer.say(message, body)
        received += peer.hear(1.0)

    text = told(received)
    assert FORGED.encode() not in text
    for leak in LEAKS:
        assert leak not in text, (leak, received)
    for task in ("task", "waiting"):
        assert bytes.fromhex(world.ids[task]) not in text, received
    world.system.await_true(lambda: everything(world) == before, "nothing has changed", 5)


@pytest.mark.parametrize("name", ["function", "zqmark_fn", "zqmark_fn@1", "zqmark_work.py:zqmark_fn", "blob"])
@pytest.mark.parametrize("offset", [0, 10])
def test_what_is_anothers_is_not_sent(world: World, peers: dict[str, Maker], name: str, offset: int) -> None:
    """Bodies of functions and blobs go to whom may run or read them, by their hash only."""
    with peers["another owner's endpoint"]() as peer:
        peer.hello()
        peer.say(bridge.FetchPart(world.ids.get(name, name), offset))
        received = peer.hear(2.0)

    assert any(isinstance(m, bridge.BlobPart) and m.why for m, _ in received), received
    for leak in LEAKS:
        assert leak not in told(received)


def test_frames_of_an_old_session_are_dropped(world: World, peers: dict[str, Maker]) -> None:
    """A peer that copies another's session numbers is still only itself."""
    before = everything(world)

    with peers["another owner's endpoint"]() as peer:
        peer.hello()
        peer.session, peer.n = peer.session - 10_000_000, 5
        for message, body in (*_results(world), *_reports(world)):
            peer.say(message, body)
        received = peer.hear(1.0)

    assert b"zqmark" not in told(received)
    assert everything(world) == before


def test_a_routing_id_of_another_takes_over_nothing(world: World, peers: dict[str, Maker]) -> None:
    """Peers choose their routing ids; the key alone says who they are."""
    with peers["another owner's endpoint"](routing_id=world.ids["endpoint"].encode()) as peer:
        received = peer.hello()

    assert any(isinstance(m, bridge.Welcome) for m, _ in received)
    assert world.made("GET", "/v1/endpoints/zqmark-ep")["state"] == "connected"
    assert world.made("GET", "/v1/endpoints/zqmark-ep")["host"] != "hostile"
