"""`oncue triggers`."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, listing, number_of, say, table, when
from oncue.cli.tasks.filters import since_option, until_option
from oncue.protocol.api import Backfilled, TriggerInfo
from oncue.quantities import size_text

ASKED_FILES = 1_000  # a backfill of more files asks first


@click.group(cls=Group)
def triggers() -> None:
    """List triggers, and explain why an item fired or did not.

    \b
    Example:
      oncue triggers list
    """


@triggers.command("list")
@json_option
def list_(json_: bool) -> None:
    """List triggers, their states, and the numbers of items emitted and skipped.

    OLD FILES existed before the trigger; they fire only when they change.

    \b
    Example:
      oncue triggers list --json
    """
    head = ("NAME", "KIND", "STATE", "EMITTED SINCE START", "SKIPPED", "OLD FILES", "LAST", "WHY")
    with connected() as client:
        listing(client.triggers.list(), json_, head, _row, "no triggers")


def _row(t: TriggerInfo) -> tuple[Any, ...]:
    why = t.detail or (f"{when(t.last_skip_us)}: {t.last_skip}" if t.last_skip else "")
    if t.server:
        why = f"on {t.server}" + (f": {why}" if why else "")
    return (t.name, t.kind, t.state, t.emitted, t.skipped, t.existing, when(t.last_us), why)


@triggers.command()
@click.argument("name", shell_complete=completers.triggers)
@json_option
def show(name: str, json_: bool) -> None:
    """Show one trigger, with its decisions on the last items.

    \b
    Example:
      oncue triggers show frames
    """
    with connected() as client:
        t = client.triggers.get(name)
    if json_:
        as_json(t)
        return
    looked = "" if t.looked else "no: initial scan running; files are classified by change time (ctime)"
    facts(
        [
            ("name", t.name),
            ("kind", t.kind),
            ("deployment", t.label),
            ("server", t.server),
            ("state", t.state),
            ("detail", t.detail),
            ("looked", looked),
            ("old files", t.existing),
            ("emitted since start", t.emitted),
            ("skipped", t.skipped),
        ]
    )
    if t.decisions:
        say()
        rows = ((when(d.at_us), "fired" if d.fired else "", d.path, d.why) for d in t.decisions)
        table(("AT", "", "FILE", "WHY"), rows, "nothing yet")


@triggers.command()
@click.argument("name", shell_complete=completers.triggers)
@click.argument("file")
@json_option
def explain(name: str, file: str, json_: bool) -> None:
    """Explain why FILE made the trigger NAME fire, or did not.

    FILE is absolute, or relative to the watched folder or to the current one.

    \b
    Example:
      oncue triggers explain frames /data/2bm/scan_1.h5
    """
    with connected() as client:
        found = client.triggers.explain(name, file)
        if found.state in ("not meant", "missing") and os.path.isdir(os.path.dirname(file)):
            here = client.triggers.explain(name, os.path.abspath(file))
            found = here if here.state != "not meant" else found
    if json_:
        as_json(found)
        return
    say(f"{found.path}: {found.state}: {found.why}" + (f" ({when(found.at_us)})" if found.at_us else ""))


@triggers.command()
@click.argument("name", shell_complete=completers.triggers)
@click.option("--glob", default="", metavar="GLOB", help="Only these files; without a slash, of any folder.")
@since_option
@until_option
@click.option("--dry-run", is_flag=True, help="Count the files; let none fire.")
@click.option("--yes", is_flag=True, help="Do not ask in a terminal before many files fire.")
@json_option
def backfill(name: str, glob: str, since_us: int, until_us: int, dry_run: bool, yes: bool, json_: bool) -> None:
    """Let files fire that existed before the trigger NAME.

    --since and --until compare the files' modification times. Files that have fired do not fire
    again. A file that is being written fires when it is complete. In a terminal, more than 1,000
    files are counted first, and you are asked.

    \b
    Example:
      oncue triggers backfill frames --glob "scan_1*.h5" --since 2026-11-01 --dry-run
      oncue triggers backfill frames
    """
    with connected() as client:
        start = partial(client.triggers.backfill, name, glob=glob, since_us=since_us, until_us=until_us)
        if not dry_run and not yes and sys.stdin.isatty():
            _ask(name, start(dry_run=True))
        found = start(dry_run=dry_run)
    if json_:
        as_json(found)
        return
    say(f"trigger {name}: {_old_files(found)} {'would' if dry_run else 'will'} fire")
    for path in found.first:
        say(f"  {path}")
    if found.files > len(found.first):
        say(f"  ... and {found.files - len(found.first):,} more")
    if found.fired_before:
        say(f"{found.fired_before:,} of the selected files have fired before, and do not fire again")


def _ask(name: str, counted: Backfilled) -> None:
    """Ask before many files fire. Raises Abort on no."""
    if counted.files > ASKED_FILES:
        click.confirm(f"Let {_old_files(counted)} fire, of trigger {name}?", abort=True, err=True)


def _old_files(found: Backfilled) -> str:
    if not found.files:
        return "0 old files"
    return f"{number_of(found.files, 'old file')} ({size_text(found.bytes)})"
