"""Measure the pool alone: `python -m bench.pool [TASKS]`.

Figures: no-op tasks a second, one task at a time, and the memory of a worker.
"""

from __future__ import annotations

import json
import select
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from oncue.endpoint.pool.pool import Pool
from oncue.functions import pack_function
from oncue.protocol.payload import pack_args
from oncue.protocol.records import OK, TaskRecord


def noop(x: int) -> int:
    return x


def turn(pool: Pool, timeout_s: float = 1.0) -> None:
    now = time.time_ns() // 1000
    if pool.next_wake_us is not None:
        timeout_s = min(timeout_s, max(0.0, (pool.next_wake_us - now) / 1e6))
    for fd in select.select(pool.fds(), [], [], timeout_s)[0]:
        pool.on_readable(fd)
    now = time.time_ns() // 1000
    if pool.next_wake_us is not None and now >= pool.next_wake_us:
        pool.tick(now)


def burst(pool: Pool, function: str, body: bytes, queue: deque[TaskRecord]) -> float:
    """Return the seconds until all tasks have succeeded."""
    missing, start = len(queue), time.perf_counter()
    while missing:
        while queue and pool.room():
            n = pool.chunk_size(function)
            pool.run(function, body, 0, 1, [queue.popleft() for _ in range(min(n, len(queue)))])
        turn(pool)
        events = pool.drain()
        for _, _, ended in events.ended:
            assert all(e.status == OK for e in ended)
            missing -= len(ended)
        for _, _, tasks in events.requeue:
            queue.extendleft(reversed(tasks))
    return time.perf_counter() - start


def run(tasks: int = 200_000, workers: int = 2) -> dict[str, Any]:
    packed = pack_function(noop)
    made = [TaskRecord(i.to_bytes(16, "big"), pack_args((i,), {})) for i in range(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pool = Pool(workers, Path(folder))
        while pool.ready < workers:
            turn(pool)
        ready_s = time.perf_counter() - start
        try:
            burst(pool, packed.id, packed.body, deque(made[:500]))
            single = [burst(pool, packed.id, packed.body, deque(made[i : i + 1])) for i in range(min(300, tasks))]
            before = sum(sum(psutil.Process(p).cpu_times()[:2]) for p in pool.pids)
            took = burst(pool, packed.id, packed.body, deque(made))
            cpu = sum(sum(psutil.Process(p).cpu_times()[:2]) for p in pool.pids) - before
            rss = max(psutil.Process(p).memory_info().rss for p in pool.pids)
        finally:
            pool.close(1)
    return {
        "tasks": tasks,
        "workers": workers,
        "tasks_per_s": round(tasks / took),
        "worker_us_per_task": round(cpu / tasks * 1e6, 2),
        "p50_ms": round(statistics.median(single) * 1e3, 3),
        "worker_rss_mb": round(rss / 2**20, 1),
        "ready_s": round(ready_s, 3),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)))
