"""Run the same no-op work on other systems, each with two workers.

    python -m bench.peer_programs NAME TASKS      prints JSON

Runs in the peers' venv, without oncue. The value of each outcome is checked. None of them keeps a
durable log, and the first two have no service in between, so this compares costs, not guarantees.
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

SINGLES = 200


def noop(x: Any) -> Any:
    return x


def measure(one: Callable[[int], int], many: Callable[[int], Sequence[int]], tasks: int) -> dict[str, Any]:
    """`one(i)` and `many(n)` return when the outcomes are there."""
    many(min(tasks, 500))
    took = []
    for i in range(SINGLES):
        began = time.perf_counter()
        if one(i) != i:
            raise AssertionError("an outcome had not its right value")
        took.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    values = many(tasks)
    passed = time.perf_counter() - began
    if list(values) != list(range(tasks)):
        raise AssertionError("an outcome had not its right value")
    return {"tasks": tasks, "tasks_per_s": round(tasks / passed), "p50_ms": round(statistics.median(took), 2)}


def large(round_trip: Callable[[Any], Any]) -> dict[str, Any]:
    """Send arrays of 200 MB there and back."""
    import numpy as np

    array, took = np.random.default_rng(1).random(25_000_000), []
    for n in range(4):
        array[0] = n
        began = time.perf_counter()
        found = round_trip(array)
        took.append(time.perf_counter() - began)
        if found[0] != n:
            raise AssertionError("an array came back changed")
    return {"large_s": round(statistics.median(took[1:]), 2)}


def ray(tasks: int) -> dict[str, Any]:
    import ray as peer

    peer.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        remote = peer.remote(noop)
        found = measure(
            lambda i: int(peer.get(remote.remote(i))),
            lambda n: list(peer.get([remote.remote(i) for i in range(n)])),
            tasks,
        )
        found |= large(lambda array: peer.get(remote.remote(array)))
    finally:
        peer.shutdown()
    return found | {"version": version("ray")}


def parsl_htex(tasks: int) -> dict[str, Any]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    provider = LocalProvider(init_blocks=1, max_blocks=1)
    executor = HighThroughputExecutor(
        label="peer", max_workers_per_node=2, provider=provider, address="127.0.0.1", cores_per_worker=0.1
    )

    def submit(i: Any) -> Any:
        return executor.submit(noop, {}, i)

    with tempfile.TemporaryDirectory() as folder, parsl.load(Config(executors=[executor], run_dir=folder)):
        found = measure(
            lambda i: int(submit(i).result()), lambda n: [f.result() for f in [submit(i) for i in range(n)]], tasks
        )
        found |= large(lambda array: submit(array).result())
    return found | {"version": version("parsl")}


def dask(tasks: int) -> dict[str, Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def many(n: int) -> list[int]:
            return list(client.gather(client.map(noop, range(n), pure=False)))

        found = measure(lambda i: int(client.submit(noop, i, pure=False).result()), many, tasks)
        found |= large(lambda array: client.submit(noop, array, pure=False).result())
    return found | {"version": version("distributed")}


def celery_redis(tasks: int) -> dict[str, Any]:
    import os

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["ONCUE_BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"
    redis_server = shutil.which("redis-server")
    if redis_server is None:
        return {"skipped": "there is no redis-server on the PATH"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    redis = subprocess.Popen([redis_server, *words], **quiet)
    worker_words = ["worker", "-c", "2", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
    worker = None
    try:
        worker = subprocess.Popen([sys.executable, "-m", "celery", "-A", "bench.peer_celery", *worker_words], **quiet)
        from bench.peer_celery import noop as remote

        def many(n: int) -> list[int]:
            return [int(r.get(timeout=60)) for r in [remote.delay(i) for i in range(n)]]

        found = measure(lambda i: int(remote.delay(i).get(timeout=60)), many, tasks)
    finally:
        for process in (worker, redis):
            if process is not None:
                process.terminate()
                process.wait(30)
    return found | {"version": version("celery")}


PEERS = {"Parsl HTEX": parsl_htex, "Dask distributed": dask, "Ray": ray, "Celery on Redis": celery_redis}

if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]](int(sys.argv[2]))))
