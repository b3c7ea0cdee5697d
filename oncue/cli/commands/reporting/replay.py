"""`oncue replay`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import click
import msgspec

from oncue.cli import completers
from oncue.cli.backup_progress import progress_bar
from oncue.cli.client import connected
from oncue.cli.output import as_json, json_option, number_of, say
from oncue.cli.times import time_us
from oncue.client import Client
from oncue.clocks.process import now_us
from oncue.errors import Invalid, NotReady, Unreachable
from oncue.protocol.api import ReplayPage, ReplayRequest
from oncue.protocol.priority import PRIORITY_WORDS

PATIENCE_S = 600.0  # for a server that does not answer: it may be started again
PAUSE_S = 1.0


@click.command()
@click.option("--rule", "rules", multiple=True, required=True, shell_complete=completers.rules, help="Only this rule.")
@click.option("--since", default="24h", show_default=True, help="Events since then: 7d, 2026-11-30T08:00.")
@click.option("--until", default="", help="Events before then.  [default: now]")
@click.option("--where", default="", help="Only events for which this CEL is true.")
@click.option(
    "--state",
    type=click.Choice(("failed", "done", "none")),
    help="Only events whose tasks of the rule failed, or are done; none: it has no task.",
)
@click.option("--name", default="", help="Name of the replay. The same one again adds nothing, or what is missing.")
@click.option("--priority", type=click.Choice(PRIORITY_WORDS), help="Of the tasks.  [default: the rule's]")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing.")
@json_option
def replay(
    rules: tuple[str, ...],
    since: str,
    until: str,
    where: str,
    state: str | None,
    name: str,
    priority: str | None,
    dry_run: bool,
    yes: bool,
    json_: bool,
) -> None:
    """Let rules see stored events again. Other rules do not see them.

    The tasks have other ids than those of the first time, which follow from the replay's name.

    \b
    Example:
      oncue replay --rule reconstruct --since 7d --state failed --dry-run
      oncue replay --rule reconstruct --where 'data.sample == "A"' --name calibrated --priority low
    """
    named = name or datetime.fromtimestamp(now_us() / 1e6, UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    request = ReplayRequest(
        name=named,
        since_us=time_us(since),
        until_us=time_us(until) if until else now_us(),
        where=where,
        state=state or "",  # type: ignore[arg-type]  # click has checked it
        dry_run=True,
        priority=priority or "",  # type: ignore[arg-type]
    )
    if request.since_us >= request.until_us:
        raise Invalid("--since is not before --until", remedy="swap them")
    with connected() as client:
        counted = {rule: _all(client, rule, request, json_) for rule in rules}
        if not json_:
            for rule, found in counted.items():
                say(f"{rule}: {found.chosen:,} of {number_of(found.events, 'event')}", err=not dry_run)
        if not dry_run and any(found.chosen for found in counted.values()):
            if not yes:
                click.confirm(f"Replay them as {named!r}?", abort=True, err=True)
            acting = msgspec.structs.replace(request, dry_run=False)
            counted = {rule: _all(client, rule, acting, json_) for rule in rules}
    if json_:
        as_json({"name": named, "dry_run": dry_run, "rules": counted})
    elif not dry_run:
        _show(named, counted)


def _show(name: str, counted: dict[str, ReplayPage]) -> None:
    for rule, found in counted.items():
        letters = f", {number_of(found.letters, 'dead letter')}" if found.letters else ""
        say(f"{rule}: {number_of(found.tasks, 'task')}{letters}")
    say(f"replay {name}")


def _all(client: Client, rule: str, request: ReplayRequest, quiet: bool) -> ReplayPage:
    """Ask for all pages; return their sums."""
    total = ReplayPage()
    with progress_bar(quiet=quiet) as progress:
        for page in _pages(client, rule, request):
            total = ReplayPage(
                events=total.events + page.events,
                chosen=total.chosen + page.chosen,
                tasks=total.tasks + page.tasks,
                letters=total.letters + page.letters,
            )
            progress(f"{'count' if request.dry_run else 'replay'} {rule}", total.events, None)
    return total


def _pages(client: Client, rule: str, request: ReplayRequest) -> Iterator[ReplayPage]:
    """Yield the pages. One that a killed server has not answered is asked for again."""
    cursor: str | None = ""
    until = time.monotonic() + PATIENCE_S
    while cursor is not None:
        try:
            page = client.rules.replay(rule, msgspec.structs.replace(request, cursor=cursor))
        except (Unreachable, NotReady):
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)
            continue
        yield page
        cursor = page.next
        until = time.monotonic() + PATIENCE_S
