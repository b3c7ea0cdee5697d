"""Print the report as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.goals import ALSO, figures, look_up


def show(report: Mapping[str, Any], console: Console) -> None:
    results = report["results"]
    on = report["machine"]
    title = f"{on['cores']} cores, {on['memory_gb']} GB, {on['system']}, Python {on['python']}"
    if report["quick"]:
        title += ", --quick"
    console.print(_goals(results, title))
    for name, part in results.items():
        if "error" in part:
            console.print(Text(f"{name} failed: {part['error']}", style="red"))
    if cpu := results.get("system", {}).get("throughput", {}).get("cpu_us_per_task"):
        parts = ", ".join(f"{name} {us}" for name, us in cpu.items())
        console.print(Text(f"µs of CPU a task: {parts}"))
    if "probe" in report:
        console.print(_probe(report["probe"]))
    if "peers" in report:
        console.print(_peers(report["peers"]))
    console.print(
        Text(f"load of the machine: {on['load_1min']} before, {report['load_1min_after']} after", style="dim")
    )


def _goals(results: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name, justify in (("WHAT", "left"), ("GOAL", "right"), ("FOUND", "right"), ("", "left"), ("UNIT", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for goal, value, met in figures(results):
        sign = "≥" if goal.least else "≤"
        mark = Text("met", "green") if met else Text("not met", "red") if value is not None else Text("not measured")
        table.add_row(goal.what, f"{sign} {number(goal.limit)}", number(value), mark, goal.unit)
    for what, path, unit in ALSO:
        if (value := look_up(results, path)) is not None:
            table.add_row(what, "", number(value), "", unit)
    return table


def _probe(found: Mapping[str, Any]) -> Table:
    table = Table("THE PROBE", "BEFORE", "AFTER", "OURS / ITS", box=None)
    before, after = found["before"], found["after"] or {}
    for key in ("best", "median", "sustained_view_caught_up", "p50", "sum"):
        row = (number(before.get(key)), number(after.get(key)), number(found["ratios"].get(key)))
        table.add_row(key, *row)
    for run in (before, after):
        if "error" in run:
            table.add_row(Text(f"failed: {run['error']}", style="red"))
    return table


def _peers(found: Mapping[str, Any]) -> Table:
    table = Table("PEER", "VERSION", "TASKS/S", "P50 MS", "200 MB S", "", box=None)
    for name, row in found.items():
        why = Text(str(row.get("skipped", "")))
        figures = [number(row.get(key)) for key in ("tasks_per_s", "p50_ms", "large_s")]
        table.add_row(name, row.get("version", ""), *figures, why)
    return table


def number(value: float | None) -> str:
    """Format as 1,234 or 1.23: numbers below a hundred have three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
