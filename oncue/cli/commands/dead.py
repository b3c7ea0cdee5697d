"""`oncue dead`."""

from __future__ import annotations

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, listing, say, when
from oncue.errors import Invalid


@click.group(cls=Group)
def dead() -> None:
    """List, retry and dismiss dead letters.

    A dead letter is an event or a record that could not be processed.

    \b
    Example:
      oncue dead list
    """


@dead.command("list")
@click.option("--all", "all_", is_flag=True, help="Include dead letters that were retried or dismissed.")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="List at most so many.")
@json_option
def list_(all_: bool, limit: int, json_: bool) -> None:
    """List the newest open dead letters.

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
    """Show one dead letter, with the reason and the remedy.

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
    """Process a dead letter again, after its cause is repaired.

    \b
    Example:
      oncue dead retry 3
    """
    with connected() as client:
        client.dead.retry(letter)
    as_json({"id": letter, "retried": True}) if json_ else say(f"dead letter {letter} is on its way again")


@dead.command()
@click.argument("letters", nargs=-1, type=click.IntRange(0), metavar="LETTER...")
@click.option("--all", "all_", is_flag=True, help="Dismiss all that are open now.")
@click.option("--reason", default="", help="Reason, shown by `oncue dead show`.")
@json_option
def dismiss(letters: tuple[int, ...], all_: bool, reason: str, json_: bool) -> None:
    """Take dead letters off the list. `oncue dead list --all` still shows them.

    \b
    Example:
      oncue dead dismiss 3 4 --reason "test shots"
      oncue dead dismiss --all
    """
    if bool(letters) == all_:
        raise Invalid("give numbers of dead letters, or --all", remedy="`oncue dead list` shows the numbers")
    with connected() as client:
        count = client.dead.dismiss_all(reason) if all_ else client.dead.dismiss(letters, reason)
    if json_:
        as_json({"count": count})
        return
    rest = len(set(letters)) - count
    already = f"; {rest} had been retried or dismissed already" if letters and rest else ""
    say(f"{count} dismissed{already}")
