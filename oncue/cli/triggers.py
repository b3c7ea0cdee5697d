"""`oncue triggers`."""

from __future__ import annotations

import click

from oncue.cli.connect import connected
from oncue.cli.output import as_json, json_option, table, when


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
    with connected() as client:
        found = client.triggers.list()
    if json_:
        as_json(found)
        return
    rows = ((t.name, t.kind, t.state, t.emitted, t.skipped, when(t.last_us), t.detail or t.last_skip) for t in found)
    table(("NAME", "KIND", "STATE", "EMITTED SINCE START", "SKIPPED", "LAST", "WHY"), rows, "no triggers")
