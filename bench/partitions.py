"""Measure events over more and more partitions: `python -m bench.partitions`.

Events come in batches over HTTP and a rule maps each to a task; the time ends with the last
outcome. Prints a line a step. `--log sqlite` has one partition only and is the figure to compare
with.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import urllib.request
from typing import Any

from bench import growth, system

PARTITIONS = (1, 8, 64, 256)
EVENTS, BATCH, REPEATS = 10_000, 1_000, 3
RULE = """\
rules:
  - name: echo
    on: {type: org.example.bench}
    run: {function: bench_rule.py:echo, endpoint: local, args: {n: "${data.n}"}}
"""


def _deploy(r: system.Running) -> None:
    (r.folder / "bench_rule.py").write_text("def echo(n):\n    return n\n")
    rules = r.folder / "rules.yaml"
    rules.write_text(RULE)
    system.deploy(r, rules)


def _events(r: system.Running, wave: int) -> float:
    """Return events a second, from the first request to the last closed task.

    A task counts as closed when the view has its outcome.
    """
    local = json.loads((r.folder / "data" / "local.json").read_text())
    headers = {"Authorization": f"Bearer {local['token']}", "Content-Type": "application/cloudevents-batch+json"}
    bodies = [
        json.dumps(
            [
                {
                    "specversion": "1.0",
                    "id": f"{wave}-{n}",
                    "source": "/bench",
                    "type": "org.example.bench",
                    "data": {"n": n},
                }
                for n in range(first, first + BATCH)
            ]
        ).encode()
        for first in range(0, EVENTS, BATCH)
    ]
    fired = r.client.rules.get("echo").fired
    began = time.perf_counter()
    for body in bodies:
        request = urllib.request.Request(f"{local['url']}/v1/events", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
    while r.client.rules.get("echo").fired < fired + EVENTS:
        time.sleep(0.005)
    system.await_view(r)
    return EVENTS / (time.perf_counter() - began)


def run(log: str = "kafka") -> list[dict[str, Any]]:
    found = []
    for count in PARTITIONS if log == "kafka" else (1,):
        os.environ["ONCUE_EVENTS_PARTITIONS"] = str(count)
        with growth.log_at(log) as url, system.running(log_url=url) as r:
            _deploy(r)
            _events(r, 0)
            found.append(
                {
                    "partitions": count,
                    "events_per_s": round(statistics.median(_events(r, n + 1) for n in range(REPEATS))),
                    "file": system.file_latency(r, 50),
                    "tasks_per_s": round(statistics.median(system.burst(r, 20_000) for _ in range(REPEATS))),
                }
            )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.partitions", description=__doc__.partition("\n")[0])
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="kafka")
    print(json.dumps(run(parser.parse_args().log), indent=2))
