"""A ceiling to compare with: a command that does the work without durability.

The command runs the same kind of work and leaves out oncue's measures for safety. The environment
variable ONCUE_BENCH_PROBE holds it as a shell command. Its last line on stdout is one JSON object:

    best, median               tasks/s in bursts
    p50                        ms, one task at a time
    sustained_view_caught_up   tasks/s
    sum                        µs of CPU a task, all processes
    us_per_task                the same by process

It runs right before and right after the benchmarks, since a shared machine is not equally fast at
all times; ratios use the mean of both.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from bench.goals import look_up

VARIABLE = "ONCUE_BENCH_PROBE"
PATIENCE_S = 300.0
#: probe's key -> ours
PAIRS = {
    "best": "system.throughput.burst_best_per_s",
    "median": "system.throughput.burst_per_s",
    "sustained_view_caught_up": "system.throughput.view_caught_up_per_s",
    "p50": "system.latency.p50_ms",
    "sum": "system.throughput.cpu_us_per_task_sum",
}


def run() -> dict[str, Any] | None:
    """Run the probe once; None if none is configured.

    A failure is a result too: `{"error": reason}`.
    """
    command = os.environ.get(VARIABLE, "").strip()
    if not command:
        return None
    try:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.CalledProcessError as e:
        return {"error": f"exit code {e.returncode}: {e.stderr.strip()[-300:]}"}
    except (subprocess.TimeoutExpired, ValueError, IndexError) as e:
        return {"error": str(e)}
    return dict(found) if isinstance(found, dict) else {"error": "it printed no JSON object"}


def ratios(
    results: Mapping[str, Any], before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> dict[str, float]:
    """Return our figures divided by the probe's, for figures that both have."""
    out: dict[str, float] = {}
    for key, path in PAIRS.items():
        theirs = [float(p[key]) for p in (before, after) if p and isinstance(p.get(key), (int, float))]
        ours = look_up(results, path)
        if ours is not None and theirs and sum(theirs):
            out[key] = round(ours / (sum(theirs) / len(theirs)), 2)
    return out
