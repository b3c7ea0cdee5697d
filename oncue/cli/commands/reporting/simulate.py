"""`oncue rules simulate`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import msgspec

from oncue.cli import completers
from oncue.cli.backup_progress import progress_bar
from oncue.cli.client import connected
from oncue.cli.deploying.values import values_of, values_options
from oncue.cli.output import as_json, json_option, number_of, say, table
from oncue.cli.times import time_us
from oncue.clocks.process import now_us
from oncue.errors import Invalid
from oncue.protocol.api import SimulatedDifference, SimulatedRule, SimulateRequest

SHOWN = 20  # differences in the table; --json has KEPT
KEPT = 10_000


@click.command()
@click.argument("file", type=click.Path(), shell_complete=completers.files)
@click.option("--label", default="", help="Label to compare with.  [default: the file's name]")
@click.option("--since", default="7d", show_default=True, help="Events since then: 24h, 2026-11-30.")
@click.option("--until", default="", help="Events before then.  [default: now]")
@values_options
@json_option
def simulate(
    file: str, label: str, since: str, until: str, set_: tuple[str, ...], env: tuple[str, ...], json_: bool
) -> None:
    """Show what FILE would have done with stored events, beside the rules in force.

    Nothing is run, and nothing is deployed.

    \b
    Example:
      oncue rules simulate beamline.yaml --since 7d
    """
    label = label or Path(file).stem
    since_us, until_us = time_us(since), time_us(until) if until else now_us()
    if since_us >= until_us:
        raise Invalid("--since is not before --until", remedy="swap them")
    request = SimulateRequest(text=_text(file, set_, env), since_us=since_us, until_us=until_us)
    counts: dict[str, Counter[str]] = {}
    differences: list[SimulatedDifference] = []
    left_out: set[str] = set()
    events, cursor = 0, ""
    with connected() as client, progress_bar(quiet=json_) as progress:
        while True:
            page = client.rules.simulate(label, msgspec.structs.replace(request, cursor=cursor))
            events += page.events
            for rule in page.rules:
                added = {"before": rule.before, "after": rule.after, "differing": rule.differing}
                counts.setdefault(rule.rule, Counter()).update(added)
            differences += page.differences[: KEPT - len(differences)]
            left_out.update(page.left_out)
            progress("events", events, None)
            if page.next is None:
                break
            cursor = page.next
    rules = [
        SimulatedRule(rule=n, before=c["before"], after=c["after"], differing=c["differing"]) for n, c in counts.items()
    ]
    if json_:
        period = {"label": label, "since_us": since_us, "until_us": until_us, "events": events}
        as_json({**period, "rules": rules, "differences": differences, "left_out": sorted(left_out)})
    else:
        _show(label, events, rules, differences, left_out)


def _text(file: str, set_: tuple[str, ...], env: tuple[str, ...]) -> str:
    """Return the text of a rule file in YAML or Python, checked as a deploy does."""
    from oncue.cli.rule_files import read

    (rules,) = read([file], values_of(set_, env))
    return rules.text


def _show(
    label: str, events: int, rules: list[SimulatedRule], found: list[SimulatedDifference], left_out: set[str]
) -> None:
    say(f"{number_of(events, 'event')}, with {label} as it is in force and as it would be")
    say()
    rows = [(r.rule, f"{r.before:,}", f"{r.after:,}", f"{r.after - r.before:+,}", f"{r.differing:,}") for r in rules]
    table(("RULE", "BEFORE", "AFTER", "CHANGE", "EVENTS THAT DIFFER"), rows, "no rule was tested")
    if found:
        say()
        table(
            ("OFFSET", "RULE", "BEFORE", "AFTER", "WHY OR ARGUMENTS"),
            [
                (str(d.offset), d.rule, d.before, d.after, d.why or f"{d.args_before} -> {d.args_after}")
                for d in found[:SHOWN]
            ],
            "",
        )
        differing = sum(rule.differing for rule in rules)
        if differing > SHOWN:
            say(f"... and {differing - SHOWN:,} more: --json")
    if left_out:
        say()
        say(f"not simulated, because they are on outcomes of tasks: {', '.join(sorted(left_out))}")
