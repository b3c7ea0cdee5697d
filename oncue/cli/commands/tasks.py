"""`oncue tasks`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.output import as_json, facts, json_line, json_option, listing, plain, safe, say, took, when
from oncue.cli.value_output import TEXT_CHARS, value_output
from oncue.errors import Unreachable
from oncue.protocol.api import TaskInfo


@click.group()
def tasks() -> None:
    """List, inspect, cancel and retry tasks.

    \b
    Example:
      oncue tasks list --state open
    """


@tasks.command("list")
@click.option(
    "--state",
    default="",
    shell_complete=completers.states,
    help="Only tasks in this state: open, closed, waiting, running, succeeded, failed ...",
)
@click.option("--endpoint", default="", shell_complete=completers.endpoints, help="Only tasks of this endpoint.")
@click.option("--function", default="", shell_complete=completers.functions, help="Only tasks of this function.")
@click.option("--rule", default="", shell_complete=completers.rules, help="Only tasks of this rule.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="List at most so many.")
@json_option
def list_(state: str, endpoint: str, function: str, rule: str, limit: int, json_: bool) -> None:
    """List the newest tasks.

    \b
    Example:
      oncue tasks list --state failed --rule reconstruct
    """
    head = ("ID", "STATE", "FUNCTION", "ENDPOINT", "ACCEPTED", "TOOK", "WHY")
    with connected() as client:
        found = client.tasks.list(state=state, endpoint=endpoint, function=function, rule=rule, limit=limit)
        listing(found, json_, head, _row, "no tasks")


def _row(t: TaskInfo) -> tuple[str, ...]:
    ran = took(t.started_us, t.ended_us)
    return (t.id, t.state, t.name or t.function[:12], t.endpoint, when(t.accepted_us), ran, t.why)


@tasks.command()
@click.argument("task", shell_complete=completers.task_ids)
@json_option
def show(task: str, json_: bool) -> None:
    """Show one task: its attempts, timeline, and result or error.

    \b
    Example:
      oncue tasks show 0192f0c1e5a07c3e8a1b2c3d4e5f0000
    """
    with connected() as client:
        info = client.tasks.get(task)
        timeline = client.tasks.timeline(task)
        value = value_output(client.task(task), info)
    if json_:
        as_json({"task": msgspec.structs.replace(info, value=value.json), "timeline": timeline})
        return
    text = value.text if len(value.text) <= TEXT_CHARS else str(info.value)
    if value.why_not:
        text += f" ({value.why_not})"
    error = info.error
    facts(
        [
            ("id", info.id),
            ("state", info.state),
            ("why", info.why),
            ("function", f"{info.name} {info.function}"),
            ("endpoint", info.endpoint),
            ("owner", info.owner),
            ("rule", f"{info.rule} v{info.rule_version}" if info.rule else ""),
            ("event", " ".join(info.event) if info.event else ""),
            ("retry of", info.retry_of),
            ("accepted", when(info.accepted_us)),
            ("started", when(info.started_us)),
            ("took", took(info.started_us, info.ended_us)),
            ("arguments", info.arguments),
            ("value", text or (plain(value.json) if info.has_value else "")),
            ("error", f"{error.line}\n{error.traceback}" if error else ""),
            ("remedy", error.remedy if error else ""),
            ("output", info.output),
        ]
    )
    for entry in timeline:
        say(f"  {when(entry.at_us)}  {entry.what}  {entry.detail}")


@tasks.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON lines.")
def tail(json_: bool) -> None:
    """Print new tasks and outcomes, one per line, until Ctrl-C.

    \b
    Example:
      oncue tasks tail --json | jq .state
    """
    follow(("task", "outcome"), json_)


def follow(kinds: tuple[str, ...], json_: bool) -> None:
    """Print live messages of these kinds.

    Raises Unreachable when the server closes the stream.
    """
    with connected() as client:
        for kind, data in client.live(*kinds):
            if not kind:
                continue
            if json_:
                json_line({"kind": kind, "data": data})
            else:
                say(f"{kind:8} {one_line(data)}")
        _ = client.me  # raises the better error if the token is not valid any more
    raise Unreachable("the server has closed the stream", remedy="run the command again")


def one_line(data: Any) -> str:
    """Return name=value pairs of the fields that are not empty."""
    if not isinstance(data, dict):
        return safe(data)
    fields = ((k, v) for k, v in data.items() if v not in ("", None, 0, [], {}))
    return safe(" ".join(f"{k}={v if isinstance(v, str) else plain(v)}" for k, v in fields))


@tasks.command()
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Show at most so many.")
def watch(limit: int) -> None:
    """Show a live view of the newest tasks, until Ctrl-C.

    \b
    Example:
      oncue tasks watch
    """
    from oncue.cli.live_view import watch_tasks

    with connected() as client:
        watch_tasks(client, limit)


@tasks.command()
@click.argument("ids", nargs=-1, required=True, metavar="TASK...", shell_complete=completers.open_task_ids)
@json_option
def cancel(ids: tuple[str, ...], json_: bool) -> None:
    """Cancel tasks, waiting or running.

    A task that ends before the request arrives keeps its outcome.

    \b
    Example:
      oncue tasks cancel 0192f0c1e5a07c3e8a1b2c3d4e5f0000
    """
    with connected() as client:
        asked = client.tasks.cancel(ids)
    as_json({"asked": asked}) if json_ else say("cancel requested; a task that ends before that keeps its outcome")


@tasks.command()
@click.argument("task", shell_complete=completers.task_ids)
@json_option
def retry(task: str, json_: bool) -> None:
    """Run the call of a closed task again, as a new task, and print its id.

    \b
    Example:
      oncue tasks retry 0192f0c1e5a07c3e8a1b2c3d4e5f0000
    """
    with connected() as client:
        info = client.tasks.retry(task)
    as_json(info) if json_ else say(info.id)


@tasks.command()
@click.argument("task", shell_complete=completers.task_ids)
@click.option("--follow", "-f", "follow_", is_flag=True, help="Print new output until the task has closed.")
def logs(task: str, follow_: bool) -> None:
    """Print the output of a task.

    \b
    Example:
      oncue tasks logs -f 0192f0c1e5a07c3e8a1b2c3d4e5f0000
    """
    with connected() as client:
        for part in client.tasks.logs(task, follow=follow_):
            click.echo(safe(part, lines=True), nl=False)
