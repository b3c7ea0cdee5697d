"""A real agent process against a small scripted ROUTER."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from oncue import curve
from oncue.endpoint.agent.journal import MARK, RECEIVED
from oncue.endpoint.settings import EndpointSettings, save
from oncue.functions import pack_function
from oncue.protocol import bridge as wire
from oncue.protocol.codec import decode, encode
from oncue.protocol.payload import pack_args, unpack
from oncue.protocol.records import CANCELLED, ERROR, LOST, OK, VERSION, Call, Ended, Failure, TaskRecord
from oncue.protocol.reports import Report, Started
from oncue.protocol.run_options import RunOptions

ENDPOINT = "ep_1"


def double(x: int) -> int:
    return 2 * x


def nap(seconds: float) -> str:
    import time

    time.sleep(seconds)
    return "rested"


class Bridge:
    """A scripted server: welcomes, sends function bodies, and acks results while `acks` is set."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = curve.Gate(self.context)
        keys = curve.make_keys()
        self.socket = curve.router(self.context, keys)
        self.door = curve.bind(self.socket, "127.0.0.1", 0)
        self.gate.allow(curve.load_or_make_keys(folder / "agent.key").public, ENDPOINT)
        where = curve.address("127.0.0.1", self.door.port)
        key = keys.public.decode()
        save(folder, EndpointSettings(id=ENDPOINT, name="lab", bridge=where, server_key=key, workers=2, grace_s=1.0))
        self.functions = {p.id: p for p in map(pack_function, (double, nap))}
        self.acks = True
        self.route, self.session, self.n = b"", 0, 0
        self.hellos: list[wire.Hello] = []
        self.held: list[tuple[bytes, int]] = []
        self.ended: list[Ended] = []
        self.started: set[int] = set()  # tasks reported as running for over a second
        self.wants = 0
        self.byes = 0

    def send(self, message: wire.FromBridge, body: bytes = b"") -> None:
        head = wire.encode(wire.BridgeEnvelope(self.session, self.n, 1, message))
        self.n += 1
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send_multipart([self.route, head, body])

    def until(self, true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, "that did not happen in time"
            self.gate.on_readable()
            try:
                route, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                select.select([self.gate.fileno(), int(self.socket.getsockopt(zmq.FD))], [], [], 0.05)
                continue
            self._on(route, parts)

    def _on(self, route: bytes, parts: list[bytes]) -> None:
        envelope, body = wire.decode_from_agent(parts)
        message = envelope.message
        if isinstance(message, wire.Hello):
            self.route, self.session, self.n = route, envelope.session, 0
            self.hellos.append(message)
            self.held = []
            if not message.held:
                self.send(wire.Welcome(1, "srv", "0"))
        elif isinstance(message, wire.Inventory):
            self.held += wire.unpack_inventory(body)
            if message.last:
                self.send(wire.Welcome(1, "srv", "0"))
        elif isinstance(message, wire.FetchPart):
            self.wants += 1
            packed = self.functions.get(message.sha256)
            content = packed.body if packed else b""
            self.send(wire.BlobPart(message.sha256, 0, len(content), "" if packed else "no such function"), content)
        elif isinstance(message, wire.Results):
            self.ended += decode(list[Ended], body)
            if self.acks:
                self.send(wire.Ack(message.seq))
        elif isinstance(message, wire.ReportFrame):
            report = decode(Report, body)
            if isinstance(report, Started):
                self.started.update(int.from_bytes(i, "big") for i, _, _ in report.tasks)
        elif isinstance(message, wire.Heartbeat):
            self.send(message)  # a silent server is dialled again, and its results are sent again
        elif isinstance(message, wire.Bye):
            self.byes += 1

    def dispatch(self, name: str, calls: dict[int, tuple[object, ...]], affinity: str = "") -> None:
        function = next((p.id for p in self.functions.values() if p.name == name), "ab" * 32)
        tasks = [TaskRecord(n.to_bytes(16, "big"), pack_args(args, {})) for n, args in calls.items()]
        call = Call(VERSION, function, ENDPOINT, "me", name, run=RunOptions(affinity=affinity) if affinity else None)
        self.send(wire.Dispatch(encode(call), 1, len(tasks), 1), encode(tasks))

    def close(self) -> None:
        self.socket.close(0)
        self.door.close()
        self.gate.close()
        self.context.destroy(0)


class Agents:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        log = open(self.folder / "agent.log", "ab")  # noqa: SIM115
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "oncue.endpoint.run", "--dir", str(self.folder)], stderr=log
            )
        self.processes.append(process)
        return process


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path)
    yield bridge
    bridge.close()


@pytest.fixture
def agents(tmp_path: Path, bridge: Bridge) -> Iterator[Agents]:
    agents = Agents(tmp_path)
    yield agents
    for process in agents.processes:
        process.kill()
        process.wait()


def by_id(ended: list[Ended]) -> dict[int, Ended]:
    return {int.from_bytes(e.id, "big"): e for e in ended}


def test_tasks_run_and_the_function_is_requested_once(bridge: Bridge, agents: Agents) -> None:
    agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.dispatch("double", {n: (n,) for n in range(1, 301)})
    bridge.until(lambda: len(bridge.ended) == 300)
    assert {n: unpack(e.value) for n, e in by_id(bridge.ended).items()} == {n: 2 * n for n in range(1, 301)}
    assert bridge.wants == 1


def test_a_missing_function_fails_its_tasks_and_no_others(bridge: Bridge, agents: Agents) -> None:
    agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.dispatch("nowhere", {1: ()})
    bridge.dispatch("double", {2: (21,)})
    bridge.until(lambda: len(bridge.ended) == 2)
    ended = by_id(bridge.ended)
    assert ended[1].status == ERROR
    assert "no such function" in decode(Failure, ended[1].value).message
    assert unpack(ended[2].value) == 42


def test_kill_9_loses_nothing(bridge: Bridge, agents: Agents) -> None:
    """Running tasks end as lost, waiting tasks run, and results without an ack are sent again."""
    bridge.acks = False
    first = agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.dispatch("double", {1: (1,)})
    bridge.until(lambda: len(bridge.ended) == 1)
    bridge.dispatch("nap", {2: (60.0,), 3: (60.0,)})
    # Not STARTED in the journal: a task may have been given to a worker that is busy, and be requeued
    # when the second worker is ready. A report says that the function runs.
    # The first one, too, may have run for over a second: its worker imports slowly on a busy machine.
    bridge.until(lambda: bridge.started >= {2, 3})
    bridge.dispatch("double", {4: (4,)})
    journal = agents.folder / "journal"
    bridge.until(lambda: journal.read_bytes().count(MARK + bytes([RECEIVED])) == 3)
    first.kill()
    first.wait()
    bridge.ended.clear()
    bridge.acks = True
    second = agents.start()
    bridge.until(lambda: by_id(bridge.ended).keys() == {1, 2, 3, 4})
    ended = by_id(bridge.ended)
    assert sorted(int.from_bytes(i, "big") for i, _ in bridge.held) == [1, 2, 3, 4]
    assert [ended[n].status for n in (1, 2, 3, 4)] == [OK, LOST, LOST, OK]
    assert bridge.hellos[0].journal == bridge.hellos[-1].journal
    assert bridge.hellos[0].boot != bridge.hellos[-1].boot
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    bridge.until(lambda: bridge.byes == 1)


def test_a_running_task_is_cancelled(bridge: Bridge, agents: Agents) -> None:
    agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.dispatch("nap", {1: (60.0,), 2: (0.01,)})
    bridge.until(lambda: len(bridge.ended) == 1)
    bridge.send(wire.CancelTasks("enough"), (1).to_bytes(16, "big"))
    bridge.until(lambda: len(bridge.ended) == 2)
    assert by_id(bridge.ended)[1].status == CANCELLED


def test_two_agents_in_one_folder_cannot_run(bridge: Bridge, agents: Agents) -> None:
    first = agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    second = agents.start()
    assert second.wait(60) == 1
    log = (agents.folder / "agent.log").read_text()
    assert f"runs in {agents.folder} already, process {first.pid}" in log
    assert first.poll() is None


def test_an_agent_refused_for_its_version_stops_with_a_remedy(bridge: Bridge, agents: Agents) -> None:
    process = agents.start()
    bridge.until(lambda: bool(bridge.hellos))
    bridge.send(wire.Refuse("version", "this server speaks protocol 9", "pip install oncue==9"))
    assert process.wait(60) == 5  # service managers do not start it again
    log = (agents.folder / "agent.log").read_text()
    assert "this server speaks protocol 9" in log
    assert "pip install oncue==9" in log
