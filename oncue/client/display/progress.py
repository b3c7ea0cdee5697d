"""Progress bar of waiting calls: in a terminal, or in a notebook."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Update = Callable[[int], None]  # takes the number that is done


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Update]:
    """Show how many of `total` are done, until the block ends."""
    if _in_notebook():
        yield _notebook_bar(label, total)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(label, total=total)
        yield lambda done: bar.update(line, completed=done)


def _in_notebook() -> bool:
    """Return True in a kernel of Jupyter. rich shows nothing there without ipywidgets."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _notebook_bar(label: str, total: int) -> Update:
    pages: Any = importlib.import_module("IPython.display")  # it has no types
    shown = -1

    def update(done: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:  # a message to the page costs more than a task
            shown = percent
            handle.update(pages.HTML(_bar(label, done, total)))

    handle = pages.display(pages.HTML(_bar(label, 0, total)), display_id=True)
    return update


def _bar(label: str, done: int, total: int) -> str:
    return f'<progress value="{done}" max="{max(total, 1)}"></progress> {done:,} of {total:,} {label}'
