"""Measure the agent with its pool alone: `python -m bench.agent`.

The bench process is the server: a real CURVE ROUTER on loopback and the part of the bridge that an
agent needs. Figures: no-op tasks a second in frames of 256, and the p50 of one task at a time from
dispatch to outcome.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from oncue import curve
from oncue.endpoint.settings import EndpointSettings, save
from oncue.functions import pack_function
from oncue.protocol import bridge
from oncue.protocol.codec import encode
from oncue.protocol.payload import pack_args
from oncue.protocol.records import VERSION, Call, TaskRecord

PATIENCE_S = 300.0


def noop() -> None:
    pass


class Server:
    """Minimal server: Welcome, BlobPart, tasks within credit, immediate acks."""

    def __init__(self, folder: Path, workers: int, function: Callable[[], None] = noop) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = curve.Gate(self.context)
        keys = curve.make_keys()
        self.socket = curve.router(self.context, keys)
        self.door = curve.bind(self.socket, "127.0.0.1", 0)
        self.gate.allow(curve.load_or_make_keys(folder / "agent.key").public, "ep_bench")
        address = curve.address("127.0.0.1", self.door.port)
        save(
            folder,
            EndpointSettings(
                id="ep_bench", name="bench", bridge=address, server_key=keys.public.decode(), workers=workers
            ),
        )
        self.function = pack_function(function)
        self.call = encode(Call(VERSION, self.function.id, "ep_bench", "bench", "noop"))
        self.route, self.session, self.n = b"", 0, 0
        self.granted = self.sent = self.done = 0

    def send(self, message: bridge.FromBridge, body: bytes = b"") -> None:
        head = bridge.encode(bridge.BridgeEnvelope(self.session, self.n, 1, message))
        self.n += 1
        self.socket.send_multipart([self.route, head, body] if body else [self.route, head])

    def pump(self, wait_s: float = 1.0) -> None:
        """Read all pending messages; if there are none, wait up to `wait_s`."""
        self.gate.on_readable()
        if not self._read():
            select.select([self.gate.fileno(), int(self.socket.getsockopt(zmq.FD))], [], [], wait_s)

    def _read(self) -> bool:
        seq = -1
        found = False
        while True:
            try:
                route, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            found = True
            envelope, _ = bridge.decode_from_agent(parts)
            message = envelope.message
            if isinstance(message, bridge.Hello):
                self.route, self.session, self.n, self.granted, self.sent = route, envelope.session, 0, 0, 0
                self.send(bridge.Welcome(1, "bench", "0"))
            elif isinstance(message, bridge.Results):
                self.done += message.count
                self.granted = max(self.granted, message.granted)
                seq = message.seq
            elif isinstance(message, bridge.Credit):
                self.granted = max(self.granted, message.granted)
            elif isinstance(message, bridge.FetchPart):
                body = self.function.body
                self.send(bridge.BlobPart(message.sha256, message.offset_bytes, len(body)), body)
        if seq >= 0:
            self.send(bridge.Ack(seq))
        return found

    def dispatch(self, tasks: list[TaskRecord]) -> None:
        self.sent += len(tasks)
        self.send(bridge.Dispatch(self.call, 1, len(tasks), time.time_ns() // 1000), encode(tasks))

    def close(self) -> None:
        self.socket.close(0)
        self.door.close()
        self.gate.close()
        self.context.destroy(0)


def run(tasks: int = 200_000, workers: int = 2, singles: int = 500) -> dict[str, Any]:
    """Return {tasks_per_s, p50_ms, agent_cpu_us (a task), agent_rss_bytes}."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, workers)
        agent = subprocess.Popen([sys.executable, "-m", "oncue.endpoint.run", "--dir", name], stderr=subprocess.DEVNULL)
        try:
            return measure(server, agent.pid, tasks, singles)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(20)
            server.close()


def measure(server: Server, pid: int, tasks: int, singles: int) -> dict[str, Any]:
    """Return the figures of the agent with this pid, once it is connected."""
    import psutil

    made = numbered(tasks + singles + 5_000)
    run_all(server, made[:5_000])
    took: list[float] = []
    for task in made[5_000 : 5_000 + singles]:
        begun = time.perf_counter()
        run_all(server, [task])
        took.append(time.perf_counter() - begun)
    process = psutil.Process(pid)
    cpu = sum(process.cpu_times()[:2])
    begun = time.perf_counter()
    run_all(server, made[5_000 + singles :])
    passed = time.perf_counter() - begun
    cpu = sum(process.cpu_times()[:2]) - cpu
    return {
        "tasks_per_s": round(tasks / passed),
        "p50_ms": round(statistics.median(took) * 1e3, 3),
        "agent_cpu_us": round(cpu / tasks * 1e6, 2),
        "agent_rss_bytes": process.memory_info().rss,
        "cores": os.cpu_count(),
    }


def numbered(count: int) -> list[TaskRecord]:
    """Return so many tasks without arguments."""
    args = pack_args((), {})
    return [TaskRecord(i.to_bytes(16, "big"), args) for i in range(1, count + 1)]


def run_all(server: Server, tasks: list[TaskRecord]) -> None:
    """Send all tasks within the agent's credit; return when all have ended."""
    goal, at = server.done + len(tasks), 0
    deadline = time.monotonic() + PATIENCE_S
    while server.done < goal:
        while at < len(tasks) and server.granted > server.sent:
            part = tasks[at : at + min(256, server.granted - server.sent)]
            server.dispatch(part)
            at += len(part)
        server.pump()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{goal - server.done} tasks did not end")


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
