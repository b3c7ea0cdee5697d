"""One agent, 100,000 workers, 1,000,000 queued tasks: `python -m bench.crowd`.

    client ──1,000,000 tasks──► server (their endpoint is away)
                                └─ memory with all of them queued
                                server ──► agent ──► simulated workers, each task takes TASK_S
                                           └─ memory while the tasks run

The server, its log and view, the link and the agent with its journal are the real ones, in their
own processes. Only the workers are simulated, by a pool that answers when a task's time has passed.
The value of each outcome is checked.
"""

from __future__ import annotations

import heapq
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import MutableSequence, Sequence
from typing import Any

import msgspec
import psutil

from bench.system import noop, running
from oncue.cli.registration import register_endpoint
from oncue.client import Client
from oncue.endpoint import run as endpoint_run
from oncue.endpoint.pool.base import PoolEvents
from oncue.endpoint.pool.pool import STARTED_US
from oncue.endpoint.providers.base import Block, BlockRequest, BlockState, BlockStatus, ProviderContext
from oncue.endpoint.providers.catalog import PROVIDERS
from oncue.endpoint.settings import EndpointSettings, save
from oncue.protocol.payload import MSGPACK, unpack_args
from oncue.protocol.records import OK, Ended, TaskRecord
from oncue.protocol.run_options import RunOptions

TASK_S = 2.0
PATIENCE_S = 300.0
NAME = "crowd"
PARTS = 20


class SimulatedPool:
    """A WorkerPool whose workers only wait (endpoint/pool/base.py)."""

    def __init__(self, workers: int, task_s: float = TASK_S) -> None:
        self.size = self.ready = workers
        self.trouble, self.fds_version = "", 0
        self.next_wake_us: int | None = None
        self._task_us = int(task_s * 1e6)
        self._due: list[
            tuple[int, int, str, int, list[TaskRecord]]
        ] = []  # (when, tie-breaker, function, attempt, tasks)
        self._late: list[tuple[int, str, int, list[TaskRecord]]] = []  # to be reported as started
        self._ties = 0
        self._events = PoolEvents()

    @property
    def busy(self) -> int:
        return len(self._due)

    def fds(self) -> list[int]:
        return []

    def room(self) -> int:
        return self.size - len(self._due)

    def chunk_size(self, function: str) -> int:
        return 1  # as for all long tasks

    def misfit(self, options: RunOptions) -> str:
        return ""

    def rooms_of(self, key: str) -> list[tuple[str, int]]:
        return []

    def run(
        self,
        function: str,
        body: bytes | None,
        timeout_ms: int,
        attempt: int,
        tasks: list[TaskRecord],
        options: RunOptions | None = None,
    ) -> None:
        now = time.time_ns() // 1000
        self._ties += 1
        heapq.heappush(self._due, (now + self._task_us, self._ties, function, attempt, tasks))
        if self._task_us > STARTED_US:
            self._late.append((now, function, attempt, tasks))
        self.next_wake_us = self._due[0][0] if not self._late else min(self._due[0][0], self._late[0][0] + STARTED_US)

    def tick(self, now_us: int) -> None:
        events, due = self._events, self._due
        at = 0
        for begun, _, attempt, tasks in self._late:
            if begun + STARTED_US > now_us:
                break
            at += 1
            events.started.extend((t.id, attempt, begun, "simulated") for t in tasks)
        del self._late[:at]
        while due and due[0][0] <= now_us:
            when, _, function, attempt, tasks = heapq.heappop(due)
            ends = [_ended(t, attempt, when - self._task_us, now_us) for t in tasks]
            events.ended.append((function, attempt, ends))
        wakes = ([due[0][0]] if due else []) + ([self._late[0][0] + STARTED_US] if self._late else [])
        self.next_wake_us = min(wakes, default=None)

    def drain(self) -> PoolEvents:
        events, self._events = self._events, PoolEvents()
        return events

    def cancel(self, ids: frozenset[bytes]) -> None: ...

    def close(self, grace_s: float) -> None: ...

    def on_readable(self, fd: int) -> None: ...


class SimulatedProvider:
    """A provider of blocks of simulated workers."""

    def __init__(self, context: ProviderContext) -> None: ...

    def submit(self, request: BlockRequest) -> Block:
        return Block(request.id, SimulatedPool(request.workers))

    def status(self, ids: Sequence[str]) -> dict[str, BlockStatus]:
        return dict.fromkeys(ids, BlockStatus(BlockState.RUNNING))

    def cancel(self, ids: Sequence[str], grace_s: float) -> None: ...


def _ended(task: TaskRecord, attempt: int, started_us: int, now_us: int) -> Ended:
    """Return the end of a `noop` task: its value is its argument."""
    args, _ = unpack_args(task.args)
    value = MSGPACK + msgspec.msgpack.encode(args[0])
    return Ended(task.id, attempt, OK, started_us, now_us, value, b"", task.event, task.retry_of, task.mark_us)


def run(tasks: int = 1_000_000, workers: int = 100_000) -> dict[str, Any]:
    """Return {tasks_per_s, server_mb, agent_mb, agent_growth ...}.

    server_mb: before, with all tasks queued, and after. agent_mb: early and late, with all workers
    busy; agent_growth is late / early.
    """
    with running(workers=1) as r:
        folder = r.folder / NAME
        folder.mkdir()
        found = register_endpoint(r.client, folder, NAME)
        save(
            folder,
            EndpointSettings(
                id=found.id, name=NAME, bridge=found.bridge, server_key=found.server_key, workers=workers,
                spool_bytes=1 << 30,
            ),
        )  # fmt: skip
        before = _rss_mb(r.process.pid)
        handles = []
        step = max(1, tasks // PARTS)
        for first in range(0, tasks, step):
            part = range(first, min(first + step, tasks))
            handles.append((part, r.client.map(noop, part, endpoint=NAME)))
        _await_queued(r.client, tasks)
        queued = _rss_mb(r.process.pid)
        agent = subprocess.Popen([sys.executable, "-m", "bench.crowd", str(folder)], stderr=subprocess.DEVNULL)
        try:
            began = time.perf_counter()
            sizes = _watch(handles, agent.pid, r.client)
            took = time.perf_counter() - began
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)
        return {
            "tasks": tasks,
            "workers": workers,
            "tasks_per_s": round(tasks / took),
            "server_mb": {"before": before, "queued": queued, "after": _rss_mb(r.process.pid)},
            **sizes,
        }


def _watch(handles: Sequence[tuple[range, MutableSequence[Any]]], pid: int, client: Client) -> dict[str, Any]:
    """Gather all outcomes; read the agent's memory after each part.

    The second third is compared with the last.
    """
    sizes = []
    for part, futures in handles:
        if client.gather(futures, timeout=PATIENCE_S) != list(part):
            raise AssertionError("an outcome has the wrong value")
        futures.clear()
        sizes.append(_rss_mb(pid))
    third = len(sizes) // 3
    early, late = max(sizes[third : 2 * third]), max(sizes[2 * third :])
    return {"agent_mb": {"early": early, "late": late}, "agent_growth": round(late / early, 3)}


def _await_queued(client: Client, tasks: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while sum(e.waiting for e in client.endpoints.list()) < tasks:
        if time.monotonic() > deadline:
            raise TimeoutError("the tasks were not queued in time")
        time.sleep(0.1)


def _rss_mb(pid: int) -> float:
    return round(float(psutil.Process(pid).memory_info().rss) / 1e6, 1)


def agent(folder: str) -> int:
    """Run the real agent's process, with blocks of simulated workers."""
    PROVIDERS["simulated"] = SimulatedProvider
    return endpoint_run.main(["--dir", folder], provider="simulated")


def main(argv: list[str]) -> int:
    if len(argv) > 1 and os.path.isdir(argv[1]):
        return agent(argv[1])
    print(json.dumps(run(*(int(a) for a in argv[1:])), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
