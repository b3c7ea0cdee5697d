"""Measure the cost of a task as registered endpoints and stored tasks grow.

    python -m bench.growth [--log kafka] [--tasks 5000000]

Runs the same burst and the same single calls with 1 endpoint, with 2,000 endpoints that have a
waiting task each, and then with more and more tasks stored. Prints a line a step; the ratios are to
the first step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from bench import kafka, system
from oncue import curve
from oncue.protocol.api import EndpointRequest

ENDPOINTS = (1, 200, 2_000)
STEPS = 4  # on the way to all tasks
BURSTS, CALLS = 5, 200


def _figures(r: system.Running) -> dict[str, Any]:
    rates = [system.burst(r, 20_000) for _ in range(BURSTS)]
    system.await_view(r)
    return {
        "burst_per_s": round(statistics.median(rates)),
        "p50_ms": system.latency(r, CALLS)["p50_ms"],
        "server_mb": round(r.processes()["server"].memory_info().rss / 1e6),
    }


def _with_endpoints(r: system.Running, have: int, want: int) -> None:
    """Register endpoints that never connect, each with a waiting task."""
    for n in range(have, want):
        r.client.endpoints.register(EndpointRequest(name=f"away{n}", public_key=curve.make_keys().public.decode()))
    handles = [r.client.submit(system.noop, n, endpoint=f"away{n}") for n in range(have, want)]
    r.client.flush(120)
    assert len(handles) == want - have


@contextlib.contextmanager
def log_at(name: str) -> Iterator[str]:
    if name == "sqlite":
        yield ""
        return
    with kafka.broker() as address:
        yield f"kafka://{address}?prefix=growth."


def run(log: str = "sqlite", tasks: int = 5_000_000) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def step(endpoints: int, stored: int) -> None:
        line = {"endpoints": endpoints, "stored_tasks": stored, **_figures(r)}
        line |= {"burst_ratio": round(line["burst_per_s"] / (found or [line])[0]["burst_per_s"], 2)}
        line |= {"p50_ratio": round(line["p50_ms"] / (found or [line])[0]["p50_ms"], 2)}
        found.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)

    with log_at(log) as url, system.running(log_url=url) as r:
        stored = 0
        system.burst(r, 20_000)
        for have, want in zip((1, *ENDPOINTS), ENDPOINTS, strict=False):
            _with_endpoints(r, have, want)
            step(want, stored)
            stored += BURSTS * 20_000
        for n in range(1, STEPS + 1):
            while stored < tasks * n // STEPS:
                system.burst(r, 50_000)
                stored += 50_000
            system.await_view(r)
            step(ENDPOINTS[-1], stored)
            stored += BURSTS * 20_000
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="sqlite")
    parser.add_argument("--tasks", type=int, default=5_000_000)
    given = parser.parse_args()
    print(json.dumps(run(given.log, given.tasks), indent=2))
