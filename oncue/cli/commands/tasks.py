"""`oncue tasks`."""

from __future__ import annotations

import codecs
import sys
from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, plain, safe, say, table, took, when, when_listed
from oncue.cli.tasks import many
from oncue.cli.tasks import tail as lines
from oncue.cli.tasks.filters import (
    State,
    check_period,
    cursor_option,
    endpoint_option,
    filter_options,
    rule_option,
    tell_more,
    total_text,
)
from oncue.cli.tasks.ids import newest_id, whole_id, whole_ids
from oncue.cli.tasks.live import ended, follow_json
from oncue.cli.value_output import TEXT_CHARS, value_output
from oncue.client.files import OutputFile, save_all
from oncue.errors import Conflict, Invalid
from oncue.protocol.api import FAILED_STATES, AttemptInfo, TaskFileInfo, TaskInfo
from oncue.quantities import size_text

FILES_SHOWN = 10


@click.group(cls=Group)
def tasks() -> None:
    """List, inspect, cancel and retry tasks.

    A task's id may be shortened to its first digits, as lists do.

    \b
    Example:
      oncue tasks list --state open
    """


@tasks.command("list")
@filter_options
@click.option("--not-retried", is_flag=True, help="Only tasks that no retry by hand has replaced.")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="List at most so many.")
@cursor_option
@json_option
def list_(limit: int, cursor: str, json_: bool, **filters: Any) -> None:
    """List the newest tasks.

    \b
    Example:
      oncue tasks list --state failed --rule reconstruct --since 2h
      oncue tasks list --since yesterday --until 14:30 --limit 500
    """
    check_period(filters["since_us"], filters["until_us"])
    with connected() as client:
        found, following = client.tasks.page(cursor=cursor, limit=limit, **filters)
        total = total_text(client.tasks.count, filters) if following else ""
    if json_:
        as_json(found)
    else:
        shorts = {t.id: t.short for t in found}
        several = len({t.owner for t in found}) > 1  # an admin's list
        owner = ("OWNER",) if several else ()
        rows = [_row(t, shorts) + ((t.owner,) if several else ()) for t in found]
        table(("ID", "STATE", "FUNCTION", "ENDPOINT", "ACCEPTED", "TOOK", "WHY", *owner), rows, "no tasks")
    tell_more(len(found), total, following, "tasks", json_)


def _row(t: TaskInfo, shorts: dict[str, str]) -> tuple[str, ...]:
    ran = took(t.started_us, t.ended_us)
    retried = f"retried as {shorts.get(t.replaced_by, '') or t.replaced_by}" if t.replaced_by else ""
    why = "; ".join(text for text in (retried, t.why) if text)
    return (shown_id(t), t.state, t.name or t.function[:12], t.endpoint, when_listed(t.accepted_us), ran, why)


def shown_id(t: TaskInfo) -> str:
    """Return the id for a table: in a terminal as short as it is sure to be found by."""
    return (t.short if sys.stdout.isatty() else "") or t.id


@tasks.command()
@click.argument("task", required=False, shell_complete=completers.task_ids)
@json_option
def show(task: str | None, json_: bool) -> None:
    """Show one task: its attempts, timeline, and result or error.

    Without TASK, the newest.

    \b
    Example:
      oncue tasks show 0192f0c1e5a0
    """
    with connected() as client:
        task = newest_id(client) if task is None else whole_id(client, task)
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
            ("retried as", info.replaced_by),
            ("accepted", when(info.accepted_us)),
            ("started", when(info.started_us)),
            ("took", took(info.started_us, info.ended_us)),
            ("used", _used(info.attempts)),
            ("arguments", info.arguments),
            ("value", text or (plain(value.json) if info.has_value else "")),
            ("error", f"{error.line}\n{error.traceback}" if error else ""),
            ("remedy", error.remedy if error else ""),
            ("sandbox", error.folder if error else ""),
            ("needs", ", ".join(f"{name} {needed}" for name, needed in info.resources.items())),
            ("affinity", info.affinity),
            ("priority", "" if info.priority == "normal" else info.priority),
            ("files", _files(info.files)),
            ("output", info.output),
        ]
    )
    for entry in timeline:
        say(f"  {when(entry.at_us)}  {entry.what}  {entry.detail}")


def _used(attempts: list[AttemptInfo]) -> str:
    """Return CPU time and memory of the last attempt that was measured."""
    last = next((a for a in reversed(attempts) if a.cpu_us or a.peak_bytes), None)
    if last is None:
        return ""
    peak = f", {size_text(last.peak_bytes)} of memory at most" if last.peak_bytes else ""
    return f"{last.cpu_us / 1e6:.2f} s of CPU{peak}"


def _print_stream(file: OutputFile) -> None:
    """Print a stream; on a terminal, without control characters."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in file.parts():
        click.echo(safe(decoder.decode(part), lines=True) if sys.stdout.isatty() else part, nl=False)


def _files(files: list[TaskFileInfo]) -> str:
    shown = [f"{f.name} ({size_text(f.size_bytes)})" for f in files[:FILES_SHOWN]]
    more = len(files) - FILES_SHOWN
    return ", ".join([*shown, *([f"and {more:,} more"] if more > 0 else [])])


@tasks.command()
@click.argument("task", required=False, shell_complete=completers.task_ids)
@click.option("--to", "folder", type=click.Path(file_okay=False), help="Save the files in this folder.")
@click.option("--stdout", "stream", flag_value="stdout", help="Print the whole stdout of a shell function.")
@click.option("--stderr", "stream", flag_value="stderr", help="Print the whole stderr of a shell function.")
@json_option
def outputs(task: str | None, folder: str | None, stream: str | None, json_: bool) -> None:
    """List the files that a task has left, or save them.

    They are what its `outputs` name, and the whole stdout and stderr of a shell function. Without
    TASK, of the newest.

    \b
    Example:
      oncue tasks outputs 0192f0c1e5a0 --to results/
      oncue tasks outputs 0192f0c1e5a0 --stderr
    """
    with connected() as client:
        task = newest_id(client) if task is None else whole_id(client, task)
        info = client.tasks.get(task)
        if not info.ended_us:
            raise Conflict(f"the task is {info.state}: its files come with its end", remedy="oncue tasks logs -f")
        if stream:
            for f in (f for f in client.tasks.files(info) if f.stream == stream):
                _print_stream(f)
            return
        saved = save_all(client.tasks.files(info), folder) if folder is not None else []
    if json_:
        as_json([*map(str, saved)] if folder is not None else info.files)
    elif folder is not None:
        say("\n".join(map(str, saved)) or "the task has left no files", err=not saved)
    else:
        rows = [(f.name, f.stream or "output", size_text(f.size_bytes), f.sha256[:12]) for f in info.files]
        table(("NAME", "KIND", "SIZE", "SHA-256"), rows, "no files")


@tasks.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON lines.")
@click.option(
    "--lines", "-n", "count", type=click.IntRange(0, 1_000), default=10, show_default=True, help="First show so many."
)
@click.option("--state", type=State(), default="", shell_complete=completers.states, help="Only tasks in these states.")
@endpoint_option
@rule_option
def tail(json_: bool, count: int, state: str, endpoint: str, rule: str) -> None:
    """Print tasks as they are accepted, run and close, until Ctrl-C.

    The newest is the last line. With --json, only what happens from now on.

    \b
    Example:
      oncue tasks tail -n 20 --rule reconstruct
      oncue tasks tail --json | jq .state
    """
    with connected() as client:
        where = client.endpoints.get(endpoint).id if endpoint else ""
        if json_:
            follow_json(client, ("task", "outcome"), lambda item: _is_meant(item, state, where, rule))
        live = client.live("task", "outcome")
        next(live, None)  # what happens from now on is not missed
        shown = lines.TaskLines(client)
        filters = {"state": state, "endpoint": endpoint, "rule": rule}
        for t in reversed(client.tasks.page(limit=count, **filters)[0] if count else []):
            click.echo(shown.of_task(t))
        for kind, item in live:
            if kind in ("task", "outcome") and _is_meant(item, state, where, rule) and shown.is_news(item):
                click.echo(shown.of_item(item))
        ended(client)


def _is_meant(item: dict[str, Any], state: str, endpoint: str, rule: str) -> bool:
    """Return True if a live item passes the filters."""
    if "id" not in item:  # that items were skipped
        return True
    now = str(item.get("state", ""))
    kind = "closed" if item.get("ended_us") else "open"
    return (
        (not state or now in state.split(",") or kind in state.split(","))
        and endpoint in ("", item.get("endpoint"))
        and rule in ("", item.get("rule"))
    )


@tasks.command()
@click.option("-n", "--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Show at most so many.")
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
@click.argument("ids", nargs=-1, metavar="[TASK...]", shell_complete=completers.open_task_ids)
@filter_options
@click.option("--dry-run", is_flag=True, help="Only say how many tasks the filters select, and show some.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def cancel(ids: tuple[str, ...], dry_run: bool, yes: bool, json_: bool, **filters: Any) -> None:
    """Cancel tasks, waiting or running: by id, or the open ones of filters.

    A task that ends before the request arrives keeps its outcome.

    \b
    Example:
      oncue tasks cancel 0192f0c1e5a0 0192f0c1e5b7
      oncue tasks cancel --rule reconstruct --state waiting --since 2h
    """
    check_selection(ids, filters, dry_run)
    asked: list[str] = []
    with connected() as client:
        if ids:
            asked = client.tasks.cancel(whole_ids(client, ids))
        else:
            filters["state"] = filters["state"] or "open"
            if dry_run:
                found, _ = client.tasks.page(limit=many.SHOWN, **filters)
                if json_:
                    as_json({"count": client.tasks.count(**filters), "tasks": found})
                else:
                    total = total_text(client.tasks.count, filters)
                    many.show_selected(found, f"{total} would be cancelled; nothing was done")
                return
            total_ = many.confirmed(client, "cancel", filters, yes)
            pages = client.tasks.cancel_selected(**filters) if total_ else iter(())
            for page in many.in_pages(pages, "cancel", total_):
                asked += page
            if not total_ and not json_:
                return
    if json_:
        as_json({"asked": asked})
    elif ids:
        say("cancel requested; a task that ends before that keeps its outcome")
    else:
        say(f"cancel requested of {len(asked):,} tasks; those that end before that keep their outcome")


def check_selection(ids: tuple[str, ...], filters: dict[str, Any], dry_run: bool) -> None:
    """Check that either tasks are named or filters given. Raises Invalid."""
    check_period(filters["since_us"], filters["until_us"])
    filtered = any(filters.values())
    if ids and (filtered or dry_run):
        raise Invalid("both tasks and filters are given", remedy="name tasks, or select them by --state, --rule ...")
    if not ids and not filtered:
        raise Invalid("no task is named", remedy="give ids, or select tasks by --state, --rule, --since ...")


@tasks.command()
@click.argument("ids", nargs=-1, metavar="[TASK...]", shell_complete=completers.task_ids)
@filter_options
@click.option(
    "--same-version", is_flag=True, help="Run the function's version that the task ran, not the one in force."
)
@click.option("--again", is_flag=True, help="With filters: also tasks that were retried before.")
@click.option("--dry-run", is_flag=True, help="Only say what the filters select, and which version would run.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def retry(
    ids: tuple[str, ...], same_version: bool, again: bool, dry_run: bool, yes: bool, json_: bool, **filters: Any
) -> None:
    """Run the calls of closed tasks again, as new tasks, and print their ids.

    The version of the function that is in force runs: for a task of a rule, what the rule runs now.
    Filters without --state select what failed in any way; a task that was retried before is left
    out, so that the command can be repeated.

    \b
    Example:
      oncue tasks retry 0192f0c1e5a0
      oncue tasks retry --rule reconstruct --state failed --since 2h --dry-run
    """
    if not (ids and dry_run):
        check_selection(ids, filters, dry_run)
    options = {"same_version": same_version, "dry_run": dry_run}
    with connected() as client:
        if ids:
            answers = client.tasks.retry_many(whole_ids(client, ids), **options)
            total = len(ids)
        else:
            filters["state"] = filters["state"] or FAILED_STATES
            skip = {"not_retried": not again}
            total = 0 if dry_run else many.confirmed(client, "retry", filters, yes, **skip)
            answers = client.tasks.retry_selected(**filters, again=again, **options) if total or dry_run else iter(())
        if dry_run:
            number = f"{total:,}" if ids else total_text(client.tasks.count, filters | {"not_retried": not again})
            for answer in answers:
                many.show_dry_run(answer, number, json_)
                return
        many.show_retries(client, many.in_pages(answers, "retry", total), json_, named=len(ids))


@tasks.command()
@click.argument("task", required=False, shell_complete=completers.task_ids)
@click.option("--follow", "-f", "follow_", is_flag=True, help="Print new output until the task has closed.")
def logs(task: str | None, follow_: bool) -> None:
    """Print the output of a task. Without TASK, of the newest.

    \b
    Example:
      oncue tasks logs -f 0192f0c1e5a0
    """
    with connected() as client:
        task = newest_id(client) if task is None else whole_id(client, task)
        for part in client.tasks.logs(task, follow=follow_):
            # On a terminal, a progress bar is written over its former state.
            again = "\r\x1b[K" if sys.stdout.isatty() else "\n"
            click.echo(again.join(safe(state, lines=True) for state in part.split("\r")), nl=False)
