"""Strong and weak scaling with real workers: an agent with a node of 1 and of 2 workers.

The node is a process of this machine, as in bench/nodes.py. The server is that of bench/agent.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from bench import agent as in_process
from bench.nodes import agent_with_node

NOOP_TRIES = 3  # of a fraction of a second each


def nap() -> None:
    time.sleep(1.0)


def spin() -> None:
    n = 0
    for i in range(1_000_000):
        n += i


#: kind -> (function, µs of a task if it is known, tasks in all)
KINDS: dict[str, tuple[Callable[[], None], int, int]] = {
    "no-op": (in_process.noop, 0, 20_000),
    "sleep": (nap, 1_000_000, 12),
    "CPU-bound": (spin, 0, 40),
}
QUICK_KINDS = {"no-op": (in_process.noop, 0, 200)}


def run(quick: bool = False) -> dict[str, Any]:
    """Return the completion times of each kind: {strong, weak}."""
    found: dict[str, Any] = {"strong": [], "weak": []}
    for kind, (function, task_us, tasks) in (QUICK_KINDS if quick else KINDS).items():
        tries = NOOP_TRIES if kind == "no-op" and not quick else 1
        half, one = _times(function, 1, [tasks // 2, tasks], tries)
        (two,) = _times(function, 2, [tasks], tries)
        common = {"kind": kind, "task_us": task_us}
        found["strong"].append(common | {"points": [_point(1, tasks, one), _point(2, tasks, two)]})
        found["weak"].append(common | {"points": [_point(1, tasks // 2, half), _point(2, tasks, two)]})
    return found


def _point(workers: int, tasks: int, s: float) -> dict[str, float]:
    return {"workers": workers, "tasks": tasks, "s": round(s, 3)}


def _times(function: Callable[[], None], workers: int, counts: list[int], tries: int) -> list[float]:
    """Return how long each number of tasks takes, after a few that do not count. The best of `tries`."""
    took = []
    with agent_with_node(workers, function) as (server, _):
        made = iter(in_process.numbered(sum(counts) * tries + workers))
        in_process.run_all(server, list(islice(made, workers)))
        for count in counts:
            each = []
            for _ in range(tries):
                tasks, begun = list(islice(made, count)), time.perf_counter()
                in_process.run_all(server, tasks)
                each.append(time.perf_counter() - begun)
            took.append(min(each))
    return took
