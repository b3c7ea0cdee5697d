"""Several servers on one Kafka, under load, with a fault every few seconds.

    python -m tests.chaos.soak --minutes 5

    load    batches with idempotency keys, each sent to random servers until one accepts it
    faults  kill -9 of servers and agents; servers and the broker stopped past their session and
            resumed
    check   after an orderly end, each accepted task has one outcome with the right value, the same
            on every server

`--seed` repeats the choices, not the moments. Exits 1 if a check fails.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from oncue.functions import pack_function
from oncue.ids import new_uuid7
from tests.e2e.many import Many, many_servers
from tests.e2e.running import System
from tests.kafka.broker import Broker

SERVERS, ENDPOINTS = 3, ("e1", "e2")
BATCH, PAUSE_S = 25, 0.1
RETRY = {"max": 100, "base_ms": 10, "cap_ms": 200, "on": ["lost"]}


def double(x: int) -> int:
    return 2 * x


class Load(threading.Thread):
    """Sends batches until `over` is set, and finishes the last one."""

    def __init__(
        self, servers: list[System], function: str, endpoint: str, rng: random.Random, pause_s: float = PAUSE_S
    ) -> None:
        super().__init__(name=f"load {endpoint}")
        self.servers, self.function, self.endpoint, self.rng = servers, function, endpoint, rng
        self.over, self._pause_s = threading.Event(), pause_s
        self.expected: dict[str, int] = {}  # task id -> value
        self.tries = 0

    def run(self) -> None:
        n = 0
        while not self.over.wait(self._pause_s):
            numbers = range(n, n + BATCH)
            first = int(self._accepted({
                "function": self.function, "endpoint": self.endpoint, "key": new_uuid7().hex(), "retry": RETRY,
                "calls": [[[x], {}] for x in numbers],
            }), 16)  # fmt: skip
            self.expected |= {f"{first + i:032x}": 2 * x for i, x in enumerate(numbers)}
            n += BATCH

    def _accepted(self, batch: dict[str, Any]) -> str:
        while True:
            self.tries += 1
            try:
                answer = self.rng.choice(self.servers).http("POST", "/v1/tasks/batch", batch)
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                time.sleep(0.1)  # the server is down
                continue
            if answer.status == 202:
                return str(answer.json["first"])
            assert answer.status in (429, 500, 503), answer
            time.sleep(0.1)


class FaultInjector:
    """Injects faults into processes; each fault is undone within seconds."""

    def __init__(self, many: Many, broker: Broker, rng: random.Random) -> None:
        self.many, self.broker, self.rng = many, broker, rng
        self.done: Counter[str] = Counter()

    def inject(self) -> None:
        what = self.rng.choice(
            (self.kill_server, self.kill_server, self.stop_server, self.kill_agent, self.stop_broker)
        )
        self.done[what.__name__] += 1
        what()

    def kill_server(self) -> None:
        server = self.rng.choice(self.many.servers)
        server.server.kill()
        self._wait(0.0, 4.0)
        server.up("--no-endpoint")

    def stop_server(self) -> None:
        process = self.many.pause(self.rng.choice(self.many.servers))
        self._wait(1.0, 8.0)
        os.kill(process.pid, signal.SIGCONT)

    def kill_agent(self) -> None:
        name = self.rng.choice(ENDPOINTS)
        self.many.agent(name).kill()
        self._wait(0.0, 3.0)
        self.many.servers[0].oncue("endpoint", "start", name, "--detach")

    def stop_broker(self) -> None:
        self.broker.pause()
        self._wait(0.5, 4.0)
        self.broker.resume()

    def _wait(self, least: float, most: float) -> None:
        time.sleep(self.rng.uniform(least, most))


def soak(folder: Path, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Return counts of tasks, requests and faults.

    Raises AssertionError if a check fails.
    """
    broker = Broker(folder / "broker", heap_mb=512).start()
    try:
        with many_servers(folder, broker.address, SERVERS) as many:
            for name in ENDPOINTS:
                many.endpoint(name, many.servers[0])
            with many.servers[0].client() as client:
                function = client.register(pack_function(double))
            loads = [Load(many.servers, function, e, random.Random(rng.random())) for e in ENDPOINTS]
            injector = FaultInjector(many, broker, rng)
            for load in loads:
                load.start()
            end = time.monotonic() + seconds
            try:
                while time.monotonic() < end:
                    injector.inject()
                    time.sleep(rng.uniform(0.5, 3.0))
            finally:
                for load in loads:
                    load.over.set()
                for load in loads:
                    load.join(180)
            expected = {i: v for load in loads for i, v in load.expected.items()}
            outcomes = many.agree(len(expected), within_s=180)
            assert {str(t["id"]) for t in outcomes} == set(expected), "exactly the accepted tasks"
            states = Counter(str(t["state"]) for t in outcomes)
            assert states == {"succeeded": len(expected)}, states
            for server in many.servers:
                values = {t["id"]: t["value"] for t in many.all_tasks(server)}
                assert values == expected, "the values"
            return {"tasks": len(expected), "requests": sum(load.tries for load in loads), **injector.done}
    finally:
        broker.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oncue-soak-") as folder:
        try:
            found = soak(Path(folder), given.minutes * 60, random.Random(given.seed))
        except AssertionError as e:
            print(f"failed: {e}")
            return 1
    print(", ".join(f"{name} {count:,}" for name, count in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
