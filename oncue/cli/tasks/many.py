"""Retry and cancel of many tasks: count, ask, then page by page.

The server takes a page at a time. If this process dies in the middle, the same command goes on: a
task that was retried, or is being cancelled, is not selected again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import click

from oncue.cli.backup_progress import progress_bar
from oncue.cli.output import as_json, number_of, say, table
from oncue.client import Client
from oncue.errors import Conflict, Invalid
from oncue.protocol.api import Retried, RetriedTask, TaskInfo

P = TypeVar("P", list[str], Retried)

SHOWN = 10  # tasks of a dry run, and of those that are not retried
PAGE = 500


def confirmed(client: Client, what: str, filters: dict[str, Any], yes: bool, **more: Any) -> int:
    """Count the tasks, ask if they are meant, return how many. Raises Invalid."""
    counted = client.tasks.count(**filters, **more)
    if not counted.count:
        say(f"no task to {what}", err=True)
        return 0
    tasks = f"{'over ' if counted.more else ''}{number_of(counted.count, 'task')}"
    if not yes:
        if not sys.stdin.isatty():
            raise Invalid(f"{tasks} would be {_past(what)}", remedy="say --yes, or --dry-run to see which")
        click.confirm(f"{what.capitalize()} {tasks}?", abort=True, err=True)
    return counted.count


def _past(what: str) -> str:
    return {"retry": "retried", "cancel": "cancelled"}[what]


def in_pages(pages: Iterator[P], what: str, total: int) -> Iterator[P]:
    """Yield the pages, and show how many tasks are done.

    If it ends early, say how far it came.
    """
    done = 0
    try:
        with progress_bar(quiet=False) as progress:
            for page in pages:
                done += len(page.tasks) if isinstance(page, Retried) else len(page)
                progress(what, done, max(total, done))
                yield page
    except BaseException:
        if total > 1:
            say(f"stopped: {done:,} tasks are {_past(what)}; with filters, the same command goes on", err=True)
        raise


def show_retries(client: Client, answers: Iterator[Retried], json_: bool, *, named: int) -> None:
    """Print the new ids, or JSON; to stderr, the versions and what is refused.

    `named`: how many tasks were named. Raises Conflict if one of them is not retried.
    """
    made: list[RetriedTask] = []
    refused: dict[str, str] = {}
    said: set[str] = set()
    for answer in answers:
        made += answer.tasks
        refused |= answer.refused
        for t in answer.tasks:
            text = version_text(t)
            if text not in said:
                said.add(text)
                say(text, err=True)
            if not json_:
                say(t.id)
    for task, why in list(refused.items())[:SHOWN]:
        say(f"not retried: {task}: {why}", err=True)
    if len(refused) > SHOWN:
        say(f"... and {len(refused) - SHOWN:,} more", err=True)
    if json_ and (made or named != 1):
        as_json(client.tasks.get(made[0].id) if named == 1 else made)
    if refused and named:
        raise Conflict(f"{len(refused):,} of {named:,} tasks were not retried", remedy="the reasons are above")


def show_dry_run(answer: Retried, total: str, json_: bool) -> None:
    """Print what a retry would run."""
    if json_:
        as_json({"count": total, "tasks": answer.tasks, "refused": answer.refused})
        return
    rows = [(t.retry_of, t.state, t.name, _change(t), t.endpoint) for t in answer.tasks[:SHOWN]]
    table(("ID", "STATE", "FUNCTION", "VERSION", "ENDPOINT"), rows, "no task to retry")
    for task, why in list(answer.refused.items())[:SHOWN]:
        say(f"not retried: {task}: {why}", err=True)
    say(f"{total} would be retried; nothing was done", err=True)


def show_selected(found: list[TaskInfo], summary: str) -> None:
    """Print the first of the tasks that are selected, and how many there are."""
    rows = [(t.short or t.id, t.state, t.name, t.endpoint, t.why) for t in found]
    table(("ID", "STATE", "FUNCTION", "ENDPOINT", "WHY"), rows, "no task is selected")
    say(summary, err=True)


def version_text(t: RetriedTask) -> str:
    """Return which version of its function a retry runs."""
    now = f"{t.name} version {t.version}" if t.version else f"{t.name} {t.function[:12]}"
    where = f"on {t.endpoint}" + (f", as rule {t.rule} has it now" if t.rule and t.version != t.old_version else "")
    if t.version == t.old_version:
        return f"{now} runs again {where}"
    return f"{now} runs {where} (the old task ran version {t.old_version or 'unknown'})"


def _change(t: RetriedTask) -> str:
    if t.version == t.old_version:
        return str(t.version or t.function[:12])
    return f"{t.old_version or '?'} → {t.version}"
