"""`oncue dead`."""

from __future__ import annotations

import click

from oncue.cli import completing
from oncue.cli.connect import connected
from oncue.cli.output import as_json, facts, json_option, say, table, when


@click.group()
def dead() -> None:
    """Look at what could not go on, and why.

    \b
    Example:
      oncue dead list
    """


@dead.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
def list_(limit: int, json_: bool) -> None:
    """The newest dead letters.

    \b
    Example:
      oncue dead list --json
    """
    with connected() as client:
        found = list(client.dead.list(limit))
    if json_:
        as_json(found)
        return
    table(
        ("ID", "AT", "STAGE", "RULE", "REASON"),
        ((d.id, when(d.at_us), d.stage, d.rule, d.reason) for d in found),
        "none",
    )


@dead.command()
@click.argument("letter", type=int, shell_complete=completing.dead_letters)
@json_option
def show(letter: int, json_: bool) -> None:
    """One dead letter.

    \b
    Example:
      oncue dead show 3
    """
    with connected() as client:
        d = client.dead.get(letter)
    if json_:
        as_json(d)
        return
    facts([("id", str(d.id)), ("at", when(d.at_us)), ("stage", d.stage), ("rule", d.rule), ("reason", d.reason)])
    facts(
        [
            ("remedy", d.remedy),
            ("event", " ".join(d.event) if d.event else ""),
            ("topic", d.topic),
            ("offset", d.offset),
        ]
    )


@dead.command()
@click.argument("letter", type=int, shell_complete=completing.dead_letters)
@json_option
def retry(letter: int, json_: bool) -> None:
    """Put it back where it came from.

    \b
    Example:
      oncue dead retry 3
    """
    with connected() as client:
        client.dead.retry(letter)
    as_json({"id": letter, "retried": True}) if json_ else say(f"dead letter {letter} is on its way again")
