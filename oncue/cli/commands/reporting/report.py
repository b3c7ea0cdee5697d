"""`oncue report`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.output import as_json, json_option, say, when
from oncue.cli.reports.formats import LISTED, csv_lines, html_page, show_events, show_summary
from oncue.cli.reports.summary import ReportSummary
from oncue.cli.times import time_us
from oncue.clocks.process import now_us
from oncue.errors import Invalid
from oncue.protocol.api import ReportItem
from oncue.protocol.api.reports import REPORT_STATES

UNACCOUNTED = 1  # exit code


@click.command()
@click.option("--rule", default="", shell_complete=completers.rules, help="This rule, and those that follow it.")
@click.option("--trigger", default="", shell_complete=completers.triggers, help="Events of this trigger.")
@click.option("--since", default="", help="Events since then: 24h, 2026-11-30, 2026-11-30T08:00.  [default: 24h]")
@click.option("--until", default="", help="Events before then.")
@click.option("--day", default="", help="Events of this day: 2026-11-30.")
@click.option("--group", default="", help="Sums by the value of a path into the event: data.sample.")
@click.option("--list", "listed", type=click.Choice(REPORT_STATES), help="List the events of this state.")
@click.option("--csv", "csv_", is_flag=True, help="Print a line of CSV for each event.")
@click.option("--html", is_flag=True, help="Print a page of HTML.")
@json_option
@click.pass_context
def report(
    context: click.Context,
    rule: str,
    trigger: str,
    since: str,
    until: str,
    day: str,
    group: str,
    listed: str | None,
    csv_: bool,
    html: bool,
    json_: bool,
) -> None:
    """Account for all events.

    arrived = done + failed + waiting + passed over + missing.

    Each number is a list with reasons. An event is missing if a rule fires for it, and it has
    neither a task nor a dead letter. Exit code 1: something is missing.

    \b
    Example:
      oncue report
      oncue report --rule reconstruct --day 2026-11-30 --group data.sample
      oncue report --since 7d --list failed
      oncue report --since 7d --html > week.html
    """
    if csv_ + html + json_ > 1:
        raise Invalid("--csv, --html and --json are given together", remedy="give one of them")
    since_us, until_us = _period(since, until, day)
    summary = ReportSummary()
    with connected() as client:
        filters = {"rule": rule, "trigger": trigger, "group": group}
        found = client.events.report(since_us=since_us, until_us=until_us, **filters)
        items = summary.read(found, bool(group))
        chosen = (item for item in items if not listed or item.state == listed)
        if csv_:
            for line in csv_lines(chosen):
                click.echo(line)
        elif html:
            title = f"oncue report, {when(since_us)} to {when(until_us)}"
            click.echo(html_page(title, summary, _by_state(chosen)))
        elif json_:
            events = list(chosen)
            as_json({"since_us": since_us, "until_us": until_us, **summary.as_dict(), "events": events})
        elif listed:
            show_events(chosen)
        else:
            for _ in chosen:
                pass
            say(f"events from {when(since_us)} to {when(until_us)}")
            show_summary(summary)
    if not summary.accounted:
        context.exit(UNACCOUNTED)


def _by_state(items: Iterator[ReportItem]) -> dict[str, list[ReportItem]]:
    """Return the first events of each state."""
    found: dict[str, list[ReportItem]] = {}
    for item in items:
        events = found.setdefault(item.state, [])
        if len(events) < LISTED:
            events.append(item)
    return found


def _period(since: str, until: str, day: str) -> tuple[int, int]:
    """Return the period in unix µs. Raises Invalid."""
    if not day:
        found = time_us(since or "24h"), time_us(until) if until else now_us()
        if found[0] >= found[1]:
            raise Invalid("--since is not before --until", remedy="swap them")
        return found
    if since or until:
        raise Invalid("--day is given with --since or --until", remedy="give one of them")
    try:
        following = datetime.strptime(day, "%Y-%m-%d") + timedelta(days=1)  # noqa: DTZ007 - a day of this place
    except ValueError:
        raise Invalid(f"--day: {day!r} is not a day", remedy="write 2026-11-30") from None
    return time_us(day), time_us(following.strftime("%Y-%m-%d"))
