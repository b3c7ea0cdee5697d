"""Measure deploys and restarts with 10,000 rules and 1,000,000 stored events.

A server runs in a process of its own, and is deployed to by `oncue deploy` as users do. It is killed
(-9) before each restart. `deploy_health_ms` is the longest that /health/live took meanwhile, asked every
20 ms. `restart_without_view_s`: its view.db was removed, so it is built again from the log.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from bench.rules import TRIGGERS, text
from oncue.client import Client
from oncue.protocol.api import EndpointRequest

FILE_RULES = 1_000
BATCH = 2_000  # events of a request
START_S = 600.0


class Server:
    """`oncue up` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.process: subprocess.Popen[bytes] | None = None
        self.local: dict[str, Any] = {}

    def start(self) -> float:
        """Start it; return the seconds until it is ready."""
        (self.data / "local.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "oncue", "up", "--data", str(self.data), "--port", "0", "--no-endpoint"]
        began = time.perf_counter()
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        while time.perf_counter() - began < START_S:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                self.local = json.loads((self.data / "local.json").read_text())
                if self.get("/health/ready") == 200:
                    return time.perf_counter() - began
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.01)
        raise TimeoutError(f"the server is not ready after {START_S:g} s")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.local["url"].rpartition(":")[2]), timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def client(self) -> Client:
        return Client(url=self.local["url"], token=self.local["token"])

    @contextlib.contextmanager
    def health(self) -> Iterator[list[float]]:
        """Ask for /health/live every 20 ms; yields the seconds that each answer took."""
        took: list[float] = []
        ended = threading.Event()

        def ask() -> None:
            while not ended.wait(0.02):
                began = time.perf_counter()
                self.get("/health/live")
                took.append(time.perf_counter() - began)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield took
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("ONCUE_BENCH_DIR", "/var/tmp"), prefix="oncue-bench-") as made:
        found = Server(Path(made))
        try:
            found.start()
            with found.client() as client:
                client.endpoints.register(EndpointRequest(name="local", public_key=zmq.curve_keypair()[0].decode()))
            yield found
        finally:
            found.kill()


def write_rules(folder: Path, rules: int) -> list[str]:
    """Write rule files and their function. Return the names of the files."""
    (folder / "tomo.py").write_text("def reconstruct(path):\n    return path\n")
    doors = "".join(f"  - {{name: t{n}, kind: webhook, verify: none, type: x{n}}}\n" for n in range(TRIGGERS))
    (folder / "doors.yaml").write_text("triggers:\n" + doors)
    lines, names = text(rules).split("\n")[1:], ["doors.yaml"]
    for at in range(0, rules, FILE_RULES):
        names.append(f"rules{at}.yaml")
        (folder / names[-1]).write_text("\n".join(["rules:", *lines[at : at + FILE_RULES]]))
    return names


def deploy(found: Server, names: list[str]) -> float:
    began = time.perf_counter()
    environment = os.environ | {"ONCUE_DATA": str(found.data)}
    command = [sys.executable, "-m", "oncue", "deploy", *names, "--yes"]
    subprocess.run(command, cwd=found.folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def store_events(found: Server, count: int) -> float:
    """Store events that match no rule, by POST in batches. Return the events per second."""
    headers = {
        "Authorization": f"Bearer {found.local['token']}", "Content-Type": "application/cloudevents-batch+json"
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", int(found.local["url"].rpartition(":")[2]), timeout=60)
    began = time.perf_counter()
    for at in range(0, count, BATCH):
        batch = [
            {"specversion": "1.0", "id": f"e{n}", "source": "/bench", "type": "frame", "data": {"n": n, "path": f"/d/{n}.h5"}}
            for n in range(at, min(at + BATCH, count))
        ]  # fmt: skip
        connection.request("POST", "/v1/events", json.dumps(batch).encode(), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status >= 300:
            raise RuntimeError(body[:500].decode())
    connection.close()
    return count / (time.perf_counter() - began)


def run(quick: bool = False, rules: int = 10_000, events: int = 1_000_000) -> dict[str, Any]:
    with server() as found:
        names = write_rules(found.folder, rules)
        with found.health() as took:
            figures: dict[str, Any] = {"rules": rules, "deploy_s": round(deploy(found, names), 2)}
        figures["deploy_health_ms"] = round(1000 * max(took), 1)
        found.kill()
        figures["restart_rules_s"] = round(found.start(), 2)
        if quick:
            return figures
        figures["events"] = events
        figures["stored_events_per_s"] = round(store_events(found, events))
        found.kill()
        figures["restart_events_s"] = round(found.start(), 2)
        found.kill()
        for file in found.data.glob("view.db*"):
            file.unlink()
        figures["restart_without_view_s"] = round(found.start(), 2)
    return figures


if __name__ == "__main__":
    print(json.dumps(run("--quick" in sys.argv), indent=2))
