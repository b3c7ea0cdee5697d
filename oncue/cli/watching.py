"""The live view of `oncue tasks watch`. Cells are Text objects: rich never reads data as markup."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oncue.cli.output import safe, took, when
from oncue.client import Client
from oncue.resources import TaskInfo

STYLES = {"succeeded": "green", "running": "cyan", "failed": "red", "lost": "red", "timed_out": "red"}
EVERY_S = 0.5  # the list is read again at most so often, however many tasks close


def watch_tasks(client: Client, limit: int) -> None:
    """Until the server goes away (Unreachable) or Ctrl-C."""
    shown = list(client.tasks.list(limit=limit))
    with Live(view(shown), console=Console(), screen=False, auto_refresh=False) as live:
        last = 0.0
        for _ in client.live("task", "outcome"):  # a sign of life as well: then the last news are shown
            if time.monotonic() - last >= EVERY_S:
                live.update(view(list(client.tasks.list(limit=limit))), refresh=True)
                last = time.monotonic()


def view(tasks: list[TaskInfo]) -> Table:
    table = Table(expand=True, box=None)
    for name in ("ID", "STATE", "FUNCTION", "ENDPOINT", "ACCEPTED", "TOOK", "WHY"):
        table.add_column(name, no_wrap=True)
    for t in tasks:
        cells = (t.id[:16], t.state, t.name or t.function[:12], t.endpoint, when(t.accepted_us)[11:])
        ran = took(t.started_us, t.ended_us)
        table.add_row(*(Text(safe(c), style=STYLES.get(c, "")) for c in (*cells, ran, t.why)))
    return table
