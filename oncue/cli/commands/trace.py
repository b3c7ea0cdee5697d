"""`oncue trace`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.commands.events import event_by_id, is_offset
from oncue.cli.output import as_json, json_option, say, table, took, when
from oncue.cli.tasks.ids import may_be_task, whole_id
from oncue.client import Client
from oncue.errors import NotFound
from oncue.protocol.api import Trace, TracedTaskInfo


@click.command()
@click.argument("event_or_task", metavar="EVENT|TASK", shell_complete=completers.task_ids)
@json_option
def trace(event_or_task: str, json_: bool) -> None:
    """Show what an event has caused: its tasks, those that follow them, and so on.

    EVENT is an event's offset or id. For a TASK, the trace of the event with which its chain began.

    \b
    Example:
      oncue trace 17
      oncue trace 0192f0c1e5a0
    """
    with connected() as client:
        found = _trace_of(client, event_or_task)
    if json_:
        as_json(found)
        return
    began = _show_event(found)
    rows = [_row(task, depth, began) for task, depth in _tree(found.tasks)]
    table(("RULE", "FUNCTION", "ENDPOINT", "STATE", "AFTER", "TOOK", "TASK", "WHY"), rows, "it has caused no task")
    if found.more:
        say("there are more tasks: oncue tasks list --rule NAME", err=True)


def _trace_of(client: Client, text: str) -> Trace:
    if is_offset(text):
        return client.events.trace(offset=int(text))
    if may_be_task(text):
        try:
            return client.events.trace(task=whole_id(client, text))
        except NotFound as e:
            if len(text) == 32:
                raise
            unknown = e
        try:
            return client.events.trace(offset=event_by_id(client, text).offset)
        except NotFound:
            raise unknown from None
    return client.events.trace(offset=event_by_id(client, text).offset)


def _show_event(found: Trace) -> int:
    """Print the event; return the time from which the others count, in µs."""
    first = found.tasks[0].accepted_us if found.tasks else 0
    if not found.source:
        say(f"called by a program or person at {when(first)}")
        return first
    event = found.event or {}
    kept = "" if found.event is not None else "  (not kept any more)"
    words = (f"event {found.id}", str(event.get("type", "")), f"of {found.source}", str(event.get("subject") or ""))
    say("  ".join(word for word in words if word) + kept)
    return first


def _tree(tasks: list[TracedTaskInfo]) -> Iterator[tuple[TracedTaskInfo, int]]:
    """Yield the tasks with their depth, each behind the one whose outcome caused it."""
    known = {task.id for task in tasks}
    after: dict[str, list[TracedTaskInfo]] = {}
    for task in tasks:
        after.setdefault(task.after if task.after in known else "", []).append(task)
    waiting = [(task, 0) for task in reversed(after.get("", []))]
    while waiting:
        task, depth = waiting.pop()
        yield task, depth
        waiting += [(other, depth + 1) for other in reversed(after.get(task.id, []))]


def _row(task: TracedTaskInfo, depth: int, began_us: int) -> tuple[str, ...]:
    started = task.started_us or task.accepted_us
    since = f"+{(started - began_us) / 1e3:,.0f} ms" if started else ""
    name = f"{'   ' * (depth - 1)}└─ {task.rule}" if depth else task.rule or "-"
    return (name, task.name, task.endpoint, task.state, since, took(task.started_us, task.ended_us), task.id, task.why)
