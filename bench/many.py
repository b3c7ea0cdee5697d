"""Measure one, two and three servers on one Kafka: `python -m bench.many`.

Prints a line for each number of servers; `--tasks 60000` sets the number of tasks. Three endpoints
of one worker each and three clients at each step, so that only the number of servers changes. All
processes and the broker share this machine's cores: where one server keeps these busy, more servers
cannot be faster, and the figures show their cost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from bench import kafka, system
from oncue.client import Client
from tests.e2e.many import Many, many_servers

ENDPOINTS = ("e1", "e2", "e3")
REPEATS, CALLS = 5, 300


def _load(data: Path, endpoint: str, tasks: int) -> None:
    """One client, in a process of its own."""
    with Client(data=data, patience=60) as client:
        if client.gather(client.map(system.noop, range(tasks), endpoint=endpoint)) != list(range(tasks)):
            raise AssertionError("an outcome had not its right value")


def _calls(data: Path, endpoint: str) -> float:
    """Call one task at a time, warm; p50 in ms."""
    with Client(data=data, patience=60) as client:
        for i in range(CALLS):
            client.submit(system.noop, i, endpoint=endpoint).result(60)
        took = []
        for i in range(CALLS):
            began = time.perf_counter()
            client.submit(system.noop, i, endpoint=endpoint).result(60)
            took.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(took), 2)


def _cpu_s(many: Many) -> float:
    return sum(sum(psutil.Process(s.server.pid).cpu_times()[:2]) for s in many.servers)


def _step(many: Many, clients: ProcessPoolExecutor, tasks: int) -> dict[str, Any]:
    servers = len(many.servers)
    places = [(many.servers[i % servers].data, name) for i, name in enumerate(ENDPOINTS)]

    def load(each: int) -> float:
        began = time.perf_counter()
        for running in [clients.submit(_load, data, name, each) for data, name in places]:
            running.result()
        return each * len(places) / (time.perf_counter() - began)

    load(2_000)
    before = _cpu_s(many)
    rates = [load(tasks // len(places)) for _ in range(REPEATS)]
    spent = _cpu_s(many) - before
    return {
        "servers": servers,
        "tasks_per_s": round(statistics.median(rates)),
        "servers_cpu_us_per_task": round(spent * 1e6 / (REPEATS * tasks), 1),
        "p50_ms": clients.submit(_calls, *places[0]).result(),
        "p50_by_each_ms": [clients.submit(_calls, s.data, "e1").result() for s in many.servers],
    }


def run(tasks: int = 60_000) -> list[dict[str, Any]]:
    found = []
    folder = os.environ.get("ONCUE_BENCH_DIR", "/var/tmp")
    spawn = multiprocessing.get_context("spawn")
    with (
        kafka.broker() as address,
        ProcessPoolExecutor(len(ENDPOINTS), mp_context=spawn) as clients,
    ):
        for count in (1, 2, 3):
            with (
                tempfile.TemporaryDirectory(dir=folder, prefix="oncue-bench-many-") as made,
                many_servers(Path(made), address, count) as many,
            ):
                for i, name in enumerate(ENDPOINTS):
                    many.endpoint(name, many.servers[i % count])
                found.append(_step(many, clients, tasks))
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=60_000)
    print(json.dumps(run(parser.parse_args().tasks), indent=2))
