"""An agent with a valid key attacks the server and other owners' tasks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import zmq

from oncue import curve
from oncue.functions import FunctionBody
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.payload import MSGPACK
from oncue.protocol.records import INLINE_BYTES, OK, OUTPUT_BYTES, VERSION, Call, Ended, Failure, TaskRecord
from oncue.protocol.reports import Output, Started, Usage
from tests.e2e.running import system_in
from tests.security.hostile_agent import HostileAgent, Received
from tests.security.stall import check_no_stall
from tests.security.world import OWNER, STRANGER, World

GIANTS = [(1 << 63) - 1, (1 << 64) - 1, -1, -(1 << 63), float("nan"), float("inf"), "x", None, b"x", [1], {}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a server without an agent; the attackers are the agents."""
    with system_in(tmp_path_factory.mktemp("attacks"), "--no-endpoint") as system:
        world = World(system)
        for subject in (OWNER, STRANGER):
            world.tokens[subject, "user"] = world.token(subject, "user")["token"]
        yield world


class Attacker:
    """An endpoint of the stranger's, and its agent."""

    def __init__(self, world: World, name: str, subject: str = STRANGER) -> None:
        self.world, self.name, self.keys, self.token = world, name, curve.make_keys(), world.tokens[subject, "user"]
        body = {"name": name, "public_key": self.keys.public.decode()}
        registered = world.send("POST", "/v1/endpoints", body, token=self.token).json
        self.id = str(registered["id"])
        self.address, self.server_key = registered["bridge"], registered["server_key"].encode()

    def agent(self) -> HostileAgent:
        return HostileAgent(self.address, self.server_key, self.keys)

    def register(self, name: str, source: str = "def f(*args): return args") -> str:
        """Register a function, and return its hash."""
        body = FunctionBody(1, name, "f", "m", "", source, b"", {}, (), "", "f", True, "m.py")
        request = {"name": name, "body": base64.b64encode(encode(body)).decode()}
        reply = self.world.send("POST", "/v1/functions", request, token=self.token)
        assert reply.status < 300, reply
        return str(reply.json["id"])

    def submit(self, function: str, count: int = 1, **more: Any) -> list[str]:
        out = []
        for _ in range(count):
            body = {"function": function, "endpoint": self.name} | more
            reply = self.world.send("POST", "/v1/tasks", body, token=self.token)
            assert reply.status < 300, reply
            out.append(str(reply.json["id"]))
        return out

    def task(self, task_id: str) -> Any:
        return self.world.send("GET", f"/v1/tasks/{task_id}", token=self.token).json


def refused(world: World, reason: str) -> float:
    """Return the metric of what agents sent and may not."""
    return world.system.metric(f'oncue_agent_refused_total{{reason="{reason}"}}', may_be_absent=True)


def log_of(world: World) -> str:
    return (world.system.data / "server.log").read_text()


def dispatched(received: list[Received]) -> list[tuple[bridge.Dispatch, list[TaskRecord]]]:
    return [
        (m, msgspec.msgpack.decode(body, type=list[TaskRecord]))
        for m, body in received
        if isinstance(m, bridge.Dispatch)
    ]


def take(agent: HostileAgent, count: int, granted: int = 1_000) -> list[tuple[bridge.Dispatch, TaskRecord]]:
    """Give credit, and return the tasks that come."""
    agent.say(bridge.Credit(granted))
    found: list[tuple[bridge.Dispatch, TaskRecord]] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found += [(m, t) for m, tasks in dispatched(agent.hear(1.0)) for t in tasks]
    assert len(found) == count
    return found


def parts_of(received: list[Received], kind: type) -> list[Any]:
    return [m for m, _ in received if isinstance(m, kind)]


def await_acked(world: World, agent: HostileAgent, seq: int) -> None:
    acked = -1

    def done() -> bool:
        nonlocal acked
        acked = max([acked, *(int(m.seq) for m in parts_of(agent.hear(1.0), bridge.Ack))])
        return acked == seq

    world.system.await_true(done, f"the results up to {seq} are acknowledged", 20)


# ---------------------------------------------------------------- what it may see


def test_a_function_is_fetched_by_hash_and_only_by_who_may_run_it(world: World) -> None:
    owner, stranger = Attacker(world, "fn-owner", OWNER), Attacker(world, "fn-stranger")
    sha = owner.register("secret_algorithm", "def f(): return 'zq-secret'\n")
    own = stranger.register("own_function")

    with stranger.agent() as agent:
        agent.hello()
        for name in ("secret_algorithm", sha, "secret_algorithm@1", "own_function", own):
            agent.say(bridge.FetchPart(name))
        received = agent.hear(3.0)
    with owner.agent() as agent:
        agent.hello()
        agent.say(bridge.FetchPart(sha))
        owners = agent.hear(3.0)

    whys = {m.sha256: m.why for m in parts_of(received, bridge.BlobPart)}
    assert whys.pop(own) == ""
    assert len(whys) == 4
    assert all(whys.values()), whys
    assert not any(b"zq-secret" in body for _, body in received)
    assert b"zq-secret" in b"".join(body for _, body in owners)
    assert refused(world, "transfer") >= 1


def test_a_blob_is_fetched_only_for_a_task(world: World) -> None:
    stranger = Attacker(world, "blob-stranger")
    content = b"zq-blob" * 1000
    sha = hashlib.sha256(content).hexdigest()
    assert world.send("PUT", f"/v1/blobs/{sha}", content, token=world.tokens[OWNER, "user"]).status < 300

    with stranger.agent() as agent:
        agent.hello()
        agent.say(bridge.FetchPart(sha))
        received = agent.hear(3.0)

    (part,) = parts_of(received, bridge.BlobPart)
    assert part.why
    assert not any(b"zq-blob" in body for _, body in received)


# ---------------------------------------------------------------- what it may say


def test_reports_of_others_tasks_are_dropped_and_counted(world: World) -> None:
    owner, stranger = Attacker(world, "rep-owner", OWNER), Attacker(world, "rep-stranger")
    (victim,) = owner.submit(owner.register("rep_fn"))
    before = refused(world, "report")
    reports = [
        Started(VERSION, stranger.id, ((bytes.fromhex(victim), 1, 5),), "w"),
        Output(VERSION, stranger.id, bytes.fromhex(victim), 1, 0, b"forged"),
        Started(VERSION, owner.id, ((bytes.fromhex(victim), 1, 5),), "w"),
        Usage(VERSION, owner.id, 1, 7, 7, 7, 7),
        Started(VERSION, stranger.id, tuple((os.urandom(16), 1, 5) for _ in range(100)), "w"),
    ]

    with stranger.agent() as agent:
        agent.hello()
        for report in reports:
            agent.say(bridge.ReportFrame(), encode(report))
        world.system.await_true(lambda: refused(world, "report") >= before + 104, "they are counted", 20)

    assert owner.task(victim)["state"] == "waiting"
    assert world.send("GET", f"/v1/tasks/{victim}/logs", token=owner.token).body == b""
    assert log_of(world).count("rep-stranger (") <= 1


def test_outcomes_of_others_tasks_and_forged_calls_change_nothing(world: World) -> None:
    owner, stranger = Attacker(world, "out-owner", OWNER), Attacker(world, "out-stranger")
    (victim,) = owner.submit(owner.register("out_fn"))
    function = stranger.register("out_own")
    (mine,) = stranger.submit(function)
    before = refused(world, "outcome")

    with stranger.agent() as agent:
        agent.hello()
        ((dispatch, task),) = take(agent, 1)
        forged = encode(Call(VERSION, "f" * 64, owner.id, OWNER, "forged", stream="victims-stream"))
        ended = [Ended(bytes.fromhex(victim), 1, OK, 1, 2, MSGPACK + encode("forged"))]
        agent.say(bridge.Results(0, 1, dispatch.call, 1, 1_000), encode(ended))
        agent.say(bridge.Results(1, 1, forged, 1, 1_000), encode(ended))
        agent.say(
            bridge.Results(2, 1, forged, 1, 1_000), encode([Ended(task.id, 1, OK, 1, 2, MSGPACK + encode("mine"))])
        )
        await_acked(world, agent, 2)

    assert refused(world, "outcome") >= before + 2
    assert owner.task(victim)["state"] == "waiting"
    shown = stranger.task(mine)
    assert (shown["state"], shown["owner"], shown["function"]) == ("succeeded", STRANGER, function)


def test_a_result_beyond_the_limit_becomes_an_error(world: World) -> None:
    attacker = Attacker(world, "large")
    ids = [attacker.submit(attacker.register(f"large_{n}", f"def f(): return {n}"))[0] for n in range(3)]

    with attacker.agent() as agent:
        agent.hello()
        taken = {task.id.hex(): (dispatch, task) for dispatch, task in take(agent, 3)}
        tasks = [taken[i] for i in ids]
        values = [
            (OK, b"m" + encode(b"x" * (20 << 20)), b""),
            (1, encode(Failure("E" * 10_000_000, "m" * 5_000_000, "t" * 5_000_000)), b""),
            (OK, b"m" + encode(1), b"o" * (5 << 20)),
        ]
        for seq, ((dispatch, task), (status, value, output)) in enumerate(zip(tasks, values, strict=True)):
            body = encode([Ended(task.id, 1, status, 1, 2, value, output)])
            agent.say(bridge.Results(seq, 1, dispatch.call, 1, 1_000), body)
        await_acked(world, agent, 2)

    shown = [attacker.task(i) for i in ids]
    assert [s["state"] for s in shown] == ["failed", "failed", "succeeded"]
    assert shown[0]["error"]["type"] == "oncue.ResultTooLarge"
    assert all(len(str(s)) < 3 * INLINE_BYTES for s in shown)
    logs = world.send("GET", f"/v1/tasks/{ids[2]}/logs", token=attacker.token).body
    assert len(logs) <= OUTPUT_BYTES


# ---------------------------------------------------------------- odd frames


def _odd_results(call: bytes, task: bytes) -> list[tuple[bridge.FromAgent, bytes | None]]:
    ends: list[Any] = [(task, 1, 99), (task, 0, 0), (b"", 1, 0), (task, 1, 0, -5, 2**64 - 1), (task, 1 << 40, 0)]
    ends += [(task, 1, g) for g in GIANTS] + [(task, g, 0) for g in GIANTS if g != 1]
    found: list[tuple[bridge.FromAgent, bytes | None]] = [
        (bridge.Results(i, 1, call, 1, 10), encode([e])) for i, e in enumerate(ends)
    ]
    found += [(bridge.Results(0, 1, raw, 1, 10), encode([(task, 1, 0)])) for raw in (b"", b"\xc1", b"\x91" * 5_000)]
    found.append((bridge.Results(0, 1, call, 1, 10), b"\xdd\xff\xff\xff\xff"))
    found.append((bridge.Results(0, 70_000, call, 1, 10), encode([(os.urandom(16), 1, 0)] * 70_000)))
    return found


def _odd_messages() -> list[list[bytes]]:
    head = [1 << 62, 0, 0]
    messages: list[Any] = [["no-such-kind"], [], "x", None, ["hello"], ["results", -1, 1, b"", 1, 1]]
    messages += [["credit", g] for g in GIANTS]
    messages += [["want", "a" * 64, g] for g in GIANTS] + [["want", g, 0] for g in GIANTS]
    messages += [["put", "a" * 64, g, 10] for g in GIANTS] + [["put", "a" * 64, 0, g] for g in GIANTS]
    messages += [["inventory", g] for g in GIANTS] + [["bye", g] for g in GIANTS] + [["beat", g] for g in GIANTS]
    good = [[encode([*head, m])] for m in messages]
    return [
        *good,
        [b""],
        [b"\xc1"],
        [b"\x91" * 100_000],
        [b"\xdf\xff\xff\xff\xff"],
        [encode([*head, ["beat", 1]])[:-1]],
        [b"x", b"y", b"z"],
        [b"x"] * 50_000,
        [random.Random(1).randbytes(1 << 20)],
    ]


@pytest.mark.parametrize("phase", ["before hello", "inventory", "ready"])
def test_odd_frames_are_refused_by_name_and_harm_nobody(world: World, phase: str) -> None:
    attacker, other = Attacker(world, f"odd-{phase[:3]}"), Attacker(world, f"good-{phase[:3]}", OWNER)
    function = other.register(f"odd_fn_{phase[:3]}")
    (mine,) = attacker.submit(attacker.register(f"odd_own_{phase[:3]}"))
    call = encode(Call(VERSION, function, attacker.id, STRANGER, "x"))
    (theirs,) = other.submit(function)
    before = len(log_of(world))

    with attacker.agent() as agent, other.agent() as good:
        good.hello()
        ((dispatch, task),) = take(good, 1)

        def open_phase() -> None:
            if phase != "before hello":
                agent.hello(held=5 if phase == "inventory" else 0, seconds=0.05)

        def attack() -> None:
            open_phase()
            for message, body in _odd_results(call, bytes.fromhex(mine)):
                good.say(bridge.Heartbeat(1))
                agent.say(message, body)
                if parts_of(agent.hear(0.01), bridge.Refuse):
                    open_phase()
            for parts in _odd_messages():
                good.say(bridge.Heartbeat(1))
                agent.raw(parts)
                if parts_of(agent.hear(0.01), bridge.Refuse):
                    open_phase()

        check_no_stall(world.system.local["url"], attack)
        good.say(bridge.Results(0, 1, dispatch.call, 1, 10), encode([Ended(task.id, 1, OK, 1, 2, MSGPACK + encode(1))]))
        world.system.await_true(lambda: other.task(theirs)["state"] == "succeeded", "the other endpoint's task", 20)

    said = log_of(world)[before:]
    assert "Traceback" not in said, said[-3_000:]
    assert said.count("cannot be decoded") <= 2, said
    assert attacker.task(mine)["state"] != "succeeded"


def test_an_endless_inventory_is_cut(world: World) -> None:
    attacker = Attacker(world, "endless")
    part = bridge.pack_inventory([(os.urandom(16), 1) for _ in range(50_000)])

    with attacker.agent() as agent:
        received = agent.hello(held=60_000)
        for _ in range(50):
            agent.say(bridge.Inventory(last=False), part)
        received += agent.hear(3.0)
        too_many = agent.hello(held=1 << 40)

    assert parts_of(received, bridge.Refuse)
    assert parts_of(too_many, bridge.Refuse)[0].code == "inventory"


def test_a_message_of_a_gigabyte_ends_its_connection(world: World) -> None:
    attacker, rss = Attacker(world, "giant"), world.system.server.memory_info().rss

    with attacker.agent() as agent:
        agent.hello()
        for _ in range(3):
            agent.raw([b"x", bytes(200 << 20)])
        agent.hear(3.0)
    with attacker.agent() as agent:
        assert parts_of(agent.hello(), bridge.Welcome)

    assert world.system.server.memory_info().rss - rss < 300 << 20


def test_unfinished_uploads_end_with_their_session(world: World) -> None:
    attacker = Attacker(world, "uploads")
    server = world.system.server
    before = server.num_fds()
    folder = world.system.data / "blobs" / "tmp"

    with attacker.agent() as agent:
        agent.hello()
        for _ in range(300):
            agent.say(bridge.UploadPart(os.urandom(32).hex(), 0, 1 << 30), b"x" * 1000)
            agent.hear(0.02)
        open_now = server.num_fds() - before
        agent.say(bridge.Bye("enough"))
        world.system.await_true(lambda: server.num_fds() <= before + 3, "its files are closed", 20)

    assert open_now <= 20
    world.system.await_true(lambda: not list(folder.iterdir()), "its files are gone", 20)


def test_a_flood_of_hellos_and_garbage_is_a_few_lines(world: World) -> None:
    attacker = Attacker(world, "flood")
    before = len(log_of(world))

    def attack() -> None:
        for n in range(3_000):
            agent.session, agent.n = time.time_ns() // 1000 + n, 0
            agent.say(bridge.Hello(bridge.PROTOCOL, "1", "3", "h\n\x1b[31mforged", 1, b"b" * 8, b"j" * 8, 1, 0))
            agent.raw([os.urandom(50)])
        agent.hear(3.0)

    with attacker.agent() as agent:
        check_no_stall(world.system.local["url"], attack)

    said = log_of(world)[before:]
    assert len(said.splitlines()) < 90, said
    assert "\x1b" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["outcomes", "reports", "fetches", "uploads", "beats"])
def test_a_flood_of_valid_messages_holds_nobody_up(world: World, kind: str) -> None:
    attacker = Attacker(world, f"flood-{kind}")
    call = encode(Call(VERSION, "f" * 64, attacker.id, STRANGER, "x"))
    messages: dict[str, Callable[[int], tuple[bridge.FromAgent, bytes | None]]] = {
        "outcomes": lambda n: (bridge.Results(n, 1, call, 1, 10), encode([Ended(os.urandom(16), 1, OK, 1, 2)])),
        "reports": lambda n: (
            bridge.ReportFrame(),
            encode(Started(VERSION, attacker.id, ((os.urandom(16), 1, 5),), "w")),
        ),
        "fetches": lambda n: (bridge.FetchPart(os.urandom(32).hex(), n), None),
        "uploads": lambda n: (bridge.UploadPart(os.urandom(32).hex(), 0, 1 << 30), b"x"),
        "beats": lambda n: (bridge.Heartbeat(n), None),
    }

    def attack() -> None:
        agent.hello()
        for n in range(20_000):
            with contextlib.suppress(zmq.Again):
                agent.say(*messages[kind](n))
        if reason:
            world.system.await_true(
                lambda: refused(world, reason) >= before + 10_000, "most are dropped and counted", 60, 0.5
            )
        agent.hear(2.0)

    reason = {"outcomes": "outcome", "reports": "report", "fetches": "transfer", "uploads": "transfer"}.get(kind, "")
    before = refused(world, reason)
    with attacker.agent() as agent:
        check_no_stall(world.system.local["url"], attack)
    assert "Traceback" not in log_of(world)


# ---------------------------------------------------------------- peers without a key


def test_peers_that_are_no_agents_are_one_line_a_minute(world: World) -> None:
    attacker = Attacker(world, "peers")
    host, _, port = attacker.address.removeprefix("tcp://").rpartition(":")
    before = len(log_of(world))

    def attack() -> None:
        for _ in range(200):
            with socket.create_connection((host, int(port)), timeout=5) as peer:
                peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(30):
            with HostileAgent(attacker.address, attacker.server_key) as agent:
                agent.hello(seconds=0.05)

    check_no_stall(world.system.local["url"], attack)
    world.system.await_true(lambda: refused(world, "key") >= 1, "it is counted", 20)
    with attacker.agent() as agent:
        assert parts_of(agent.hello(), bridge.Welcome)

    assert log_of(world)[before:].count("was refused by the bridge") <= 1


def test_an_agent_that_does_not_read_takes_no_memory(world: World, tmp_path: Path) -> None:
    """It asks for 4,000 parts of a megabyte, and reads none."""
    attacker = Attacker(world, "deaf")
    path = tmp_path / "data.bin"
    content = os.urandom(8 << 20)
    sha = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    assert world.send("PUT", f"/v1/blobs/{sha}", content, token=attacker.token).status < 300
    attacker.submit(attacker.register("deaf_fn", f"def f(*a): return a # {sha}\n"))
    server = psutil.Process(world.system.server.pid)

    with attacker.agent() as agent:
        agent._socket.setsockopt(zmq.RCVHWM, 1)
        agent.hello()
        payload = b"r" + encode((sha, len(content)))
        body = {"function": "deaf_fn", "endpoint": "deaf", "key": "", "payloads": [payload]}
        packed = msgspec.msgpack.encode(body)
        kind = {"Content-Type": "application/msgpack"}
        reply = world.send("POST", "/v1/tasks/batch", packed, token=attacker.token, headers=kind)
        assert reply.status < 300, reply
        rss = server.memory_info().rss
        for n in range(4_000):
            agent.say(bridge.FetchPart(sha, (n % 8) << 20))
        time.sleep(2.0)
        grown = server.memory_info().rss - rss

    assert grown < 400 << 20, f"{grown:,} bytes"
