"""Measure, simulate and draw scaling and autoscaling: `python -m bench pictures`.

    strong, weak   completion time by workers; agent and choices real, nodes and time simulated
    real           the same with 1 and 2 real workers, on a node of this machine
    autoscaling    tasks, blocks and workers over time; table of blocks real, scheduler and time simulated
    slurm          the same on a real Slurm, if it is installed (make services)

Pictures and the figures that they show (figures.json) are in docs/pictures/, or in --to. Those of
strong, weak and autoscaling are the same each time. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import autoscaling, machine, real_scaling, virtual_agent

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
FIGURES = "figures.json"
WORKERS = (64, 256, 1_024, 4_096, 16_384, 65_536, 131_072)
WEAK_TASKS = 4  # a worker
QUICK_WORKERS, QUICK_TASKS, QUICK_CPU_US = (4, 16, 64), 200, 5_000_000
#: kind -> µs of a task, fewest workers that are worth the time
KINDS = {"no-op": (2, 0), "sleep": (1_000_000, 0), "CPU-bound": (60_000_000, 1_024)}


def _scaling(quick: bool, tasks_of: Callable[[int], int]) -> dict[str, Any]:
    workers = QUICK_WORKERS if quick else WORKERS
    curves = [
        virtual_agent.curve(
            kind,
            min(task_us, QUICK_CPU_US) if quick else task_us,
            {w: tasks_of(w) for w in workers if quick or w >= fewest},
        )
        for kind, (task_us, fewest) in KINDS.items()
    ]
    costs = {"message_us": virtual_agent.MESSAGE_US, "task_us": virtual_agent.TASK_US}
    return {"curves": curves, "agent": costs | {"latency_us": virtual_agent.LATENCY_US}}


def strong(quick: bool) -> dict[str, Any]:
    return _scaling(quick, lambda workers: QUICK_TASKS if quick else 100_000)


def weak(quick: bool) -> dict[str, Any]:
    return _scaling(quick, lambda workers: (2 if quick else WEAK_TASKS) * workers)


def real(quick: bool) -> dict[str, Any]:
    return real_scaling.run(quick) | _where()


def simulated(quick: bool) -> dict[str, Any]:
    title = "Autoscaling: blocks of a simulated scheduler"
    if not quick:
        return autoscaling.simulated() | {"title": title}
    return autoscaling.simulated(((10.0, 20, 10.0),), until_s=300.0) | {"title": title}


def slurm(quick: bool) -> dict[str, Any]:
    found = autoscaling.on_slurm(((0.0, 4, 0.2),)) if quick else autoscaling.on_slurm()
    return found | {"title": "Autoscaling: blocks of Slurm on one machine"} | _where()


def _where() -> dict[str, Any]:
    return {"at": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine.describe()}


PICTURES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "strong": strong,
    "weak": weak,
    "real": real,
    "autoscaling": simulated,
    "slurm": slurm,
}


def draw(name: str, found: dict[str, Any], path: Path) -> None:
    """Draw one picture from its figures."""
    from bench import plots  # matplotlib is no dependency of the other benchmarks

    if name in ("autoscaling", "slurm"):
        plots.save(plots.trace, found, path, (7.0, 6.0))
    else:
        plots.save({"strong": plots.strong, "weak": plots.weak, "real": plots.real}[name], found, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench pictures", description="Draw scaling and autoscaling.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(PICTURES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to try it out")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="folder of the pictures")
    given = parser.parse_args(argv)
    if unknown := [name for name in given.names if name not in PICTURES]:
        parser.error(f"unknown picture {unknown[0]!r}; the pictures are {', '.join(PICTURES)}")
    given.to.mkdir(parents=True, exist_ok=True)
    file = given.to / FIGURES
    figures = json.loads(file.read_text()) if file.exists() else {}
    for name in given.names or PICTURES:
        found = json.loads(json.dumps(PICTURES[name](given.quick)))
        if "skipped" in found:
            print(f"{name}: skipped: {found['skipped']}", file=sys.stderr)
            continue
        figures[name] = found
        draw(name, found, given.to / f"{name}.svg")
        file.write_text(_json(figures))
        print(given.to / f"{name}.svg")
    return 0


def _json(figures: dict[str, Any]) -> str:
    """Return JSON with a line for each row and point."""
    text = json.dumps(figures, indent=1, sort_keys=True)
    for inner in ("[", "{"):
        text = _joined(text, inner)
    return text + "\n"


def _joined(text: str, bracket: str) -> str:
    """Join the lines of lists, or objects, that hold no others."""
    import re

    close = {"[": r"\]", "{": r"\}"}[bracket]
    simple = re.compile(rf"\{bracket}[^\[\]{{}}]*{close}")
    return simple.sub(lambda m: re.sub(r"\s+", " ", m[0]), text)


if __name__ == "__main__":
    sys.exit(main())
