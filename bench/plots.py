"""Pictures of scaling and autoscaling as SVG, by matplotlib.

No background, and colours of medium lightness: they can be read on a light and on a dark page. Each
curve's SVG element has an id, and the picture of the same figures is the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7d848d"
COLOURS = {"no-op": "#3b82f6", "sleep": "#d97706", "CPU-bound": "#2a9d5c", "waiting": "#d97706", "running": "#3b82f6"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "oncue",
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
Draw = Callable[[dict[str, Any], Figure], None]


def save(draw: Draw, found: dict[str, Any], path: Path, size: tuple[float, float] = (7.0, 4.0)) -> None:
    """Draw these figures into an SVG file."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(found, figure)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def strong(found: dict[str, Any], figure: Figure) -> None:
    """Draw the time for a fixed number of tasks, by workers, and the ideal one."""
    axes = figure.subplots()
    for one in found["curves"]:
        workers, times = _points(one)
        _curve(axes, f"strong-{one['kind']}", one, workers, times)
        if one["task_us"] >= 1_000:
            rounds = [-(-p["tasks"] // p["workers"]) for p in one["points"]]
            ideal = [n * one["task_us"] / 1e6 for n in rounds]
            axes.plot(workers, ideal, "--", color=COLOURS[one["kind"]], alpha=0.6, linewidth=1)
    _axes(axes, f"Strong scaling: {found['curves'][0]['points'][0]['tasks']:,} tasks (simulated workers)")


def weak(found: dict[str, Any], figure: Figure) -> None:
    """Draw the time for a fixed number of tasks a worker, by workers."""
    axes = figure.subplots()
    for one in found["curves"]:
        workers, times = _points(one)
        _curve(axes, f"weak-{one['kind']}", one, workers, times)
    first = found["curves"][0]["points"][0]
    _axes(axes, f"Weak scaling: {first['tasks'] // first['workers']} tasks a worker (simulated workers)")


def real(found: dict[str, Any], figure: Figure) -> None:
    """Draw strong and weak scaling of real workers, beside each other."""
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("strong", "weak"), strict=True):
        for one in found[name]:
            workers, times = _points(one)
            _curve(axes, f"real-{name}-{one['kind']}", one, workers, times)
        axes.set(title=f"{name.capitalize()} scaling, real workers", xlabel="workers", yscale="log")
        axes.set_xticks(sorted({p["workers"] for one in found[name] for p in one["points"]}))
        if name == "strong":
            axes.set_ylabel("completion time, s")
            axes.legend(fontsize=8)


def trace(found: dict[str, Any], figure: Figure) -> None:
    """Draw tasks, blocks and workers over time."""
    columns = {name: [row[at] for row in found["rows"]] for at, name in enumerate(found["columns"])}
    tasks, blocks, workers = figure.subplots(3, 1, sharex=True)
    for axes, names, title in (
        (tasks, ("waiting", "running"), "tasks"),
        (blocks, ("blocks_pending", "blocks_running"), "blocks"),
        (workers, ("workers",), "workers"),
    ):
        for name in names:
            label = {"blocks_pending": "waiting", "blocks_running": "running", "workers": "connected"}.get(name, name)
            colour = COLOURS["waiting" if label == "waiting" else "running"]
            (line,) = axes.plot(columns["s"], columns[name], color=colour, label=label, drawstyle="steps-post")
            line.set_gid(f"trace-{name}")
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, loc="upper right")
    tasks.set_title(found["title"])
    workers.set_xlabel("time, s")


def _points(one: dict[str, Any]) -> tuple[list[int], list[float]]:
    return [p["workers"] for p in one["points"]], [p["s"] for p in one["points"]]


def _curve(axes: Axes, gid: str, one: dict[str, Any], workers: Sequence[int], times: Sequence[float]) -> None:
    label = one["kind"] if one["task_us"] < 1_000 else f"{one['kind']}, {one['task_us'] / 1e6:g} s"
    (line,) = axes.plot(workers, times, "o-", color=COLOURS[one["kind"]], markersize=4, label=label)
    line.set_gid(gid.replace(" ", "-"))


def _axes(axes: Axes, title: str) -> None:
    axes.set(title=title, xscale="log", yscale="log", xlabel="workers", ylabel="completion time, s")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize=8)
