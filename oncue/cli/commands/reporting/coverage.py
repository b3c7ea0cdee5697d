"""`oncue rules coverage`."""

from __future__ import annotations

import click

from oncue.cli.backup_progress import progress_bar
from oncue.cli.client import connected
from oncue.cli.output import as_json, json_option, number_of, say, table
from oncue.cli.reports.coverage import Coverage
from oncue.cli.times import time_us
from oncue.clocks.process import now_us
from oncue.errors import Invalid


@click.command()
@click.option("--since", default="7d", show_default=True, help="Events since then: 24h, 2026-11-30.")
@click.option("--until", default="", help="Events before then.  [default: now]")
@json_option
def coverage(since: str, until: str, json_: bool) -> None:
    """Show rules that never fired, and events that no rule took.

    \b
    Example:
      oncue rules coverage --since 7d
    """
    since_us, until_us = time_us(since), time_us(until) if until else now_us()
    if since_us >= until_us:
        raise Invalid("--since is not before --until", remedy="swap them")
    found = Coverage()
    with connected() as client, progress_bar(quiet=json_) as progress:
        for item in client.events.report(since_us=since_us, until_us=until_us):
            found.read((item,))
            if not found.events % 100:
                progress("events", found.events, None)
        rules = found.rules(client.rules.list())
    untaken = found.untaken()
    if json_:
        period = {"since_us": since_us, "until_us": until_us, "events": found.events}
        as_json({**period, "rules": rules, "untaken": untaken})
        return
    say(f"{number_of(found.events, 'event')}, {number_of(sum(kind.events for kind in untaken), 'event')} not taken")
    say()
    table(
        ("RULE", "STATE", "EVENTS", "WHY"),
        [(r.rule, r.state, f"{r.events:,}", r.why) for r in rules],
        "there are no rules: oncue deploy FILE",
    )
    say()
    table(
        ("TYPE", "SOURCE", "NOT TAKEN", "OF", "WHY", "OFFSETS"),
        [(k.type, k.source, f"{k.events:,}", f"{k.of:,}", k.why, ", ".join(map(str, k.examples))) for k in untaken],
        "each event was taken by a rule",
    )
