"""Several servers on one Kafka, and endpoints that any of them may own.

Each server has a data folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from oncue.cli.agent_process import running_agent
from tests.e2e.running import PATIENCE_S, System, on_kafka

SESSION_S = 2.0  # of a server with the others: see on_kafka
FACTS = ("id", "state", "attempt", "endpoint", "owner", "accepted_us", "ended_us")


class Many:
    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.log = folder, on_kafka(address, folder)
        self.servers: list[System] = []
        self._agents: dict[str, Path] = {}

    # ------------------------------------------------------------ servers

    def add(self, *words: str, **settings: str) -> System:
        name = f"server{len(self.servers)}"
        where = self.folder / name
        where.mkdir()
        server = System(
            where, where / "data", ONCUE_LOG=self.log, ONCUE_BLOBS_FOLDER=str(self.folder / "blobs"), **settings
        )
        self.servers.append(server)
        server.up(*(words or ("--no-endpoint",)))
        return server

    def pause(self, server: System) -> psutil.Process:
        """Stop the server's process with SIGSTOP. Its connections stay open."""
        process = server.server
        os.kill(process.pid, signal.SIGSTOP)
        return process

    # ------------------------------------------------------------ endpoints

    def endpoint(self, name: str, by: System, workers: int = 1) -> None:
        by.oncue("endpoint", "register", name, "--workers", str(workers))
        self._agents[name] = by.data / "endpoints" / name
        by.oncue("endpoint", "start", name, "--detach")
        for server in self.servers:
            server.await_connected(name)

    def agent(self, name: str) -> psutil.Process:
        return psutil.Process(running_agent(self._agents[name]))

    def pass_session(self, times: float) -> None:
        """Wait for so many Kafka sessions, until the others notice a missing server."""
        threading.Event().wait(times * SESSION_S)

    # ------------------------------------------------------------ checks

    def all_tasks(self, server: System) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = server.http("GET", f"/v1/tasks?limit=1000&cursor={cursor}").json
            found += page["items"]
            cursor = page.get("next") or ""
            if not cursor:
                return found

    def agree(self, count: int, within_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Wait until each server lists the same `count` closed tasks; return them."""
        first: list[dict[str, Any]] = []

        def same() -> bool:
            nonlocal first
            lists = [
                sorted(({k: t[k] for k in FACTS} for t in self.all_tasks(s)), key=lambda t: str(t["id"]))
                for s in self.servers
            ]
            first = lists[0]
            return (
                len(first) == count and all(t["state"] not in OPEN for t in first) and lists.count(first) == len(lists)
            )

        self.servers[0].await_true(same, f"{count} closed tasks, the same on {len(self.servers)} servers", within_s)
        return first

    def end(self) -> None:
        for folder in self._agents.values():
            if pid := running_agent(folder):
                with contextlib.suppress(psutil.NoSuchProcess):
                    agent = psutil.Process(pid)
                    for process in (*agent.children(recursive=True), agent):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.kill()
        for server in self.servers:
            with contextlib.suppress(Exception):
                os.kill(server.server.pid, signal.SIGCONT)
            with contextlib.suppress(Exception):
                server.server.kill()
            server.end()


OPEN = ("waiting", "retrying", "running", "cancelling")


@contextlib.contextmanager
def many_servers(folder: Path, address: str, count: int) -> Iterator[Many]:
    found = Many(folder, address)
    try:
        for _ in range(count):
            found.add()
        yield found
    finally:
        found.end()
