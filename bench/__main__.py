"""Run the benchmarks: print one table and write JSON to bench/results/.

    python -m bench [names] [--quick] [--json FILE] [--peers]

    names      system, agent, nodes, crowd, pool, view, rules, sizes, large, log (default: all of these), kafka
    --quick    less of everything, about a minute; the figures are rougher
    pictures   draws scaling and autoscaling instead (see bench/pictures.py)
    --peers    Parsl, Dask, Ray and Celery as well, in a venv of their own (see bench/peers.py)

ONCUE_BENCH_DIR is the folder of the data (default /var/tmp). ONCUE_BENCH_PROBE: see bench/probe.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import (
    agent,
    crowd,
    kafka,
    large,
    log,
    machine,
    nodes,
    peers,
    pool,
    probe,
    rules,
    sizes,
    system,
    tables,
    view,
)

RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "system": lambda quick: system.run(quick),
    "agent": lambda quick: agent.run(50_000, singles=200) if quick else agent.run(),
    "nodes": lambda quick: nodes.run(quick),
    "crowd": lambda quick: crowd.run(100_000, 10_000) if quick else crowd.run(),
    "pool": lambda quick: pool.run(50_000) if quick else pool.run(),
    "view": lambda quick: dict(view.run(20_000) if quick else view.run()),
    "rules": lambda quick: rules.run(1) if quick else rules.run(),
    "sizes": lambda quick: sizes.run(quick),
    "large": lambda quick: large.run(50, 3) if quick else large.run(),
    "log": lambda quick: log.run(2.0) if quick else log.run(),
    "kafka": lambda quick: kafka.run(quick),
}
DEFAULT = [name for name in PARTS if name != "kafka"]  # which needs Java


def main() -> int:
    """Return 0, or 1 if a part failed.

    A goal that is not met is a figure, not a failure: machines differ.
    """
    if sys.argv[1:2] == ["pictures"]:
        from bench import pictures  # it needs what tests need

        return pictures.main(sys.argv[2:])
    given = _arguments()
    console = Console(stderr=True)
    report: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "quick": given.quick}
    report["machine"] = machine.describe()
    before = probe.run()
    results = _measure(given.names or DEFAULT, given.quick, console)
    report["results"] = results
    if before is not None:
        after = probe.run()
        report["probe"] = {"before": before, "after": after, "ratios": probe.ratios(results, before, after)}
    if given.peers:
        console.print("peers ...", style="dim")
        report["peers"] = peers.run(1_000 if given.quick else 5_000)
    report["load_1min_after"] = round(os.getloadavg()[0], 1)
    tables.show(report, Console())
    path = given.json or RESULTS / f"{report['at'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path}", style="dim", markup=False)
    return 1 if any("error" in part for part in results.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure oncue and compare the figures with its goals."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(PARTS)} (default: all but kafka)")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of the figures (default: bench/results/)")
    parser.add_argument(
        "--peers", action="store_true", help="Parsl, Dask, Ray and Celery as well, in a venv of their own"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return given


def _measure(names: list[str], quick: bool, console: Console) -> Mapping[str, dict[str, Any]]:
    """Run the parts one after the other.

    An error is the result of its part; the others still run.
    """
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        console.print(f"{name} ...", style="dim", markup=False)
        try:
            results[name] = PARTS[name](quick)
        except Exception as e:
            results[name] = {"error": f"{type(e).__name__}: {e}"}
    return results


if __name__ == "__main__":
    sys.exit(main())
