"""`oncue triggers`."""

from __future__ import annotations

from typing import Any

import click

from oncue.cli.connect import connected
from oncue.cli.output import json_option, listing, when
from oncue.resources import TriggerInfo


@click.group()
def triggers() -> None:
    """Look at the sources of events.

    \b
    Example:
      oncue triggers list
    """


@triggers.command("list")
@json_option
def list_(json_: bool) -> None:
    """The triggers: whether they run, what they emitted and skipped, and why.

    \b
    Example:
      oncue triggers list --json
    """
    head = ("NAME", "KIND", "STATE", "EMITTED SINCE START", "SKIPPED", "LAST", "WHY")
    with connected() as client:
        listing(client.triggers.list(), json_, head, _row, "no triggers")


def _row(t: TriggerInfo) -> tuple[Any, ...]:
    return (t.name, t.kind, t.state, t.emitted, t.skipped, when(t.last_us), t.detail or t.last_skip)
