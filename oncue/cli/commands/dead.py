"""`oncue dead`."""

from __future__ import annotations

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.output import as_json, facts, json_option, listing, say, when
from oncue.errors import Invalid


@click.group()
def dead() -> None:
    """Look at what could not go on, and why; retry or dismiss it.

    \b
    Example:
      oncue dead list
    """


@dead.command("list")
@click.option("--all", "all_", is_flag=True, help="Also those that were retried or dismissed.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@json_option
def list_(all_: bool, limit: int, json_: bool) -> None:
    """The newest dead letters about which nothing was done yet.

    \b
    Example:
      oncue dead list --all --json
    """
    head = ("ID", "AT", "STATE", "STAGE", "RULE", "REASON")
    with connected() as client:
        found = client.dead.list(limit, all=all_)
        listing(found, json_, head, lambda d: (d.id, when(d.at_us), d.state, d.stage, d.rule, d.reason), "none")


@dead.command()
@click.argument("letter", type=int, shell_complete=completers.dead_letters)
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
    state = f"{d.state} by {d.settled_by} at {when(d.settled_us)}" if d.settled_us else d.state
    why = f" ({d.settled_why})" if d.settled_why else ""
    facts([("id", str(d.id)), ("at", when(d.at_us)), ("state", state + why), ("stage", d.stage), ("rule", d.rule)])
    facts([("reason", d.reason), ("remedy", d.remedy), ("event", " ".join(d.event) if d.event else "")])
    facts([("owner", d.owner), ("topic", d.topic), ("offset", d.offset)])


@dead.command()
@click.argument("letter", type=int, shell_complete=completers.dead_letters)
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


@dead.command()
@click.argument("letters", nargs=-1, type=click.IntRange(0), metavar="LETTER...")
@click.option("--all", "all_", is_flag=True, help="All that are open now.")
@click.option("--reason", default="", help="Kept, and shown to those who look at it.")
@json_option
def dismiss(letters: tuple[int, ...], all_: bool, reason: str, json_: bool) -> None:
    """Nothing is to be done about these: they leave the list. `oncue dead list --all` still has them.

    \b
    Example:
      oncue dead dismiss 3 4 --reason "test shots"
      oncue dead dismiss --all
    """
    if bool(letters) == all_:
        raise Invalid("say which: numbers of letters, or --all", remedy="`oncue dead list` shows the numbers")
    with connected() as client:
        count = client.dead.dismiss_all(reason) if all_ else client.dead.dismiss(letters, reason)
    if json_:
        as_json({"count": count})
        return
    rest = len(set(letters)) - count
    already = f"; {rest} had been retried or dismissed already" if letters and rest else ""
    say(f"{count} dismissed{already}")
