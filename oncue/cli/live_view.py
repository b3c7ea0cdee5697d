"""The live view of `oncue tasks watch`. Cells are Text objects: rich never reads data as markup."""

from __future__ import annotations

import time

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oncue.cli.output import safe, took, when
from oncue.client import Client
from oncue.protocol.api import TaskInfo

STYLES = {"succeeded": "green", "running": "cyan", "failed": "red", "lost": "red", "timed_out": "red"}
EVERY_S = 0.5  # the list is read again at most so often, however many tasks close


NAMES = ("ID", "STATE", "FUNCTION", "ENDPOINT", "ACCEPTED", "TOOK", "WHY")
GIVE_UP = ("ACCEPTED", "TOOK", "ID", "WHY")  # in this order, where the terminal is too narrow for all
LEAST_WHY = 12
WHOLE_ID = 120  # columns from which ids are shown whole
GAP = 2


def watch_tasks(client: Client, limit: int) -> None:
    """Until the server goes away (Unreachable) or Ctrl-C."""
    console = Console()
    shown = list(client.tasks.list(limit=limit))
    with Live(view(shown, console.width), console=console, screen=False, auto_refresh=False) as live:
        last = 0.0
        for _ in client.live("task", "outcome"):  # a sign of life as well: then the last news are shown
            if time.monotonic() - last >= EVERY_S:
                live.update(view(list(client.tasks.list(limit=limit)), console.width), refresh=True)
                last = time.monotonic()


def view(tasks: list[TaskInfo], width: int) -> Table:
    """The tasks as lines of at most `width` columns."""
    rows = [[safe(cell) for cell in _cells(t, width)] for t in tasks]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    kept = widths(rows, width)
    for name, wide in kept.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=wide)
    for row in rows:
        shown = dict(zip(NAMES, row, strict=True))
        table.add_row(*(Text(shown[name], style=STYLES.get(shown[name], "")) for name in kept))
    return table


def _cells(t: TaskInfo, width: int) -> tuple[str, ...]:
    # Tasks of one batch differ in the last digits of their ids.
    name = t.id if width >= WHOLE_ID else "…" + t.id[-8:]
    ran = took(t.started_us, t.ended_us)
    return (name, t.state, t.name or t.function[:12], t.endpoint, when(t.accepted_us)[11:], ran, t.why)


def widths(rows: list[list[str]], width: int) -> dict[str, int]:
    """The columns that there is room for, and their widths. Long names are cut; why gets what is left."""
    most = {"FUNCTION": max(12, width // 5), "ENDPOINT": max(10, width // 8), "WHY": LEAST_WHY}
    found = {
        name: min(most.get(name, width), max([len(name), *(cell_len(row[i]) for row in rows)]))
        for i, name in enumerate(NAMES)
    }
    for name in GIVE_UP:
        if sum(found.values()) + GAP * len(found) <= width:
            break
        del found[name]
    left = width - sum(found.values()) - GAP * len(found)
    if "WHY" in found:
        found["WHY"] += max(0, left)
    return found
