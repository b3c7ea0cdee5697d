"""Live view of `oncue tasks watch`.

Cells are Text objects, so rich reads no data as markup.
"""

from __future__ import annotations

import time

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oncue.cli.output import WHOLE_ID, safe, took, when
from oncue.client import Client
from oncue.protocol.api import TaskInfo

STYLES = {"succeeded": "green", "running": "cyan", "failed": "red", "lost": "red", "timed_out": "red"}
REFRESH_S = 0.5  # shortest time between two reads of the list, however many tasks close

NAMES = ("ID", "STATE", "FUNCTION", "ENDPOINT", "ACCEPTED", "TOOK", "WHY")
OPTIONAL = ("ACCEPTED", "TOOK", "ID", "WHY")  # dropped in this order if the terminal is too narrow
LEAST_WHY = 12  # characters
GAP = 2


def watch_tasks(client: Client, limit: int) -> None:
    """Show the newest tasks until Ctrl-C.

    Raises Unreachable when the server goes away.
    """
    console = Console()
    tasks = list(client.tasks.list(limit=limit))
    with Live(view(tasks, console.width), console=console, screen=False, auto_refresh=False) as live:
        last = 0.0
        for _ in client.live("task", "outcome"):  # keepalives too: they show the last changes
            if time.monotonic() - last >= REFRESH_S:
                live.update(view(list(client.tasks.list(limit=limit)), console.width), refresh=True)
                last = time.monotonic()


def view(tasks: list[TaskInfo], width: int) -> Table:
    """Return the tasks as a table of at most `width` columns."""
    rows = [[safe(cell) for cell in _cells(t, width)] for t in tasks]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    columns = widths(rows, width)
    for name, wide in columns.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=wide)
    for row in rows:
        cells = dict(zip(NAMES, row, strict=True))
        table.add_row(*(Text(cells[name], style=STYLES.get(cells[name], "")) for name in columns))
    return table


def _cells(t: TaskInfo, width: int) -> tuple[str, ...]:
    # Tasks of one batch differ in the last digits of their ids.
    name = t.id if width >= WHOLE_ID else t.short or "…" + t.id[-8:]
    ran = took(t.started_us, t.ended_us)
    return (name, t.state, t.name or t.function[:12], t.endpoint, when(t.accepted_us)[11:], ran, t.why)


def widths(rows: list[list[str]], width: int) -> dict[str, int]:
    """Return the columns that fit, with their widths.

    WHY gets the remaining width.
    """
    most = {"FUNCTION": max(12, width // 5), "ENDPOINT": max(10, width // 8), "WHY": LEAST_WHY}
    columns = {
        name: min(most.get(name, width), max([len(name), *(cell_len(row[i]) for row in rows)]))
        for i, name in enumerate(NAMES)
    }
    for name in OPTIONAL:
        if sum(columns.values()) + GAP * len(columns) <= width:
            break
        del columns[name]
    left = width - sum(columns.values()) - GAP * len(columns)
    if "WHY" in columns:
        columns["WHY"] += max(0, left)
    return columns
