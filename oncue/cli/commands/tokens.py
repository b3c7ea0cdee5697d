"""`oncue tokens`."""

from __future__ import annotations

import math
import shlex

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected, seconds
from oncue.cli.command_group import Group
from oncue.cli.output import ambiguous, as_json, json_option, listing, say, when
from oncue.cli.times import time_us
from oncue.client import Client
from oncue.clocks.process import now_us
from oncue.errors import Forbidden, Invalid
from oncue.protocol.api import TokenInfo, TokenRequest


@click.group(cls=Group)
def tokens() -> None:
    """Create, list and revoke tokens.

    \b
    Example:
      oncue tokens create alice
    """


@tokens.command("list")
@json_option
def list_(json_: bool) -> None:
    """List your tokens, without their secrets.

    \b
    Example:
      oncue tokens list
    """
    head = ("ID", "NAME", "SUBJECT", "SCOPES", "EXPIRES", "")
    with connected() as client:
        listing(client.tokens.list(), json_, head, _row, "no tokens")


def _row(t: TokenInfo) -> tuple[str, ...]:
    return (t.id, t.name, t.subject, ",".join(t.scopes), when(t.expires_us), "revoked" if t.revoked else "")


@tokens.command()
@click.argument("person", required=False)
@click.option("--name", default="", help="What the token is for, as a list shows it (default: PERSON).")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["admin", "user", "emit", "read", "metrics"]),
    help="What the token may do (default: user). Can be repeated.",
)
@click.option("--expires", metavar="TIME", help="How long it is valid, such as 30d, or until when (default: for ever).")
@click.option("--subject", default="", help="Person that the token is for; then PERSON is its name.")
@json_option
def create(
    person: str | None, name: str, scopes: tuple[str, ...], expires: str | None, subject: str, json_: bool
) -> None:
    """Create a token of PERSON and print it. It is shown only this once.

    PERSON is a user, or an instrument or program that has objects of its own. Without PERSON, it is
    another token of yourself, which --name tells apart.

    \b
    Example:
      oncue tokens create alice --expires 365d
      oncue tokens create --name laptop
      oncue tokens create daq --scope emit --expires 30d
    """
    whose, label = subject or person or "", name or person or ""
    if not label.strip():
        raise Invalid(
            "a token needs a person or a name",
            remedy="for example oncue tokens create alice; another token of yours: oncue tokens create --name laptop",
        )
    request = TokenRequest(name=label, scopes=list(scopes) or ["user"], expires_s=_expires_s(expires), subject=whose)
    with connected() as client:
        made = _made(client, request)
        alone = made.subject != client.me.subject and sum(t.subject == made.subject for t in client.tokens.list()) == 1
    as_json(made) if json_ else say(made.token)
    until = f"until {when(made.expires_us)}" if made.expires_us else "for ever"
    say(
        f"this token {made.id} is of {made.subject}, with the scope {' and '.join(made.scopes)}, valid {until}",
        err=True,
    )
    if alone and "user" in made.scopes:
        say(
            f"{made.subject} is new here, and has tasks, functions and endpoints of their own. For another token of"
            f" yourself: oncue tokens create --name {shlex.quote(label)}",
            err=True,
        )


def _made(client: Client, request: TokenRequest) -> TokenInfo:
    try:
        return client.tokens.create(request)
    except Forbidden as e:
        if not request.subject or request.subject == client.me.subject:
            raise
        remedy = f"ask an admin; another token of yourself: oncue tokens create --name {shlex.quote(request.name)}"
        raise Forbidden(e.message, remedy=remedy) from None


def _expires_s(text: str | None) -> int:
    """Return in how many seconds a token expires: after a time, or at one; 0: never."""
    if text is None:
        return 0
    try:
        found = seconds(text) or 0.0
    except Invalid:
        if not text[:4].isdigit():
            raise
        found = (time_us(text) - now_us()) / 1e6
    if found < 1:
        raise Invalid(
            f"--expires {text} is less than a second from now", remedy="leave it out for a token without expiry"
        )
    return math.ceil(found)


@tokens.command()
@click.argument("token_id", shell_complete=completers.tokens)
@click.option("--endpoints", is_flag=True, help="Also revoke the endpoints that these tokens registered.")
@json_option
def revoke(token_id: str, endpoints: bool, json_: bool) -> None:
    """Revoke a token, and all that were made by it, at once.

    The first characters of its id are enough, or its name.

    \b
    Example:
      oncue tokens revoke 3f2a
      oncue tokens revoke alice
    """
    with connected() as client:
        token_id = _whole_id(client, token_id)
        gone = client.tokens.revoke(token_id, endpoints=endpoints)
    if json_:
        as_json({"id": token_id, "revoked": True} | msgspec.to_builtins(gone))
        return
    say(f"token {token_id} is revoked")
    for t in gone.tokens[1:]:
        say(f"token {t.id} is revoked, too ({t.name}, of {t.subject}): it was made by {t.parent}")
    if gone.endpoints and gone.endpoints_revoked:
        say(f"endpoints that they registered are revoked: {', '.join(gone.endpoints)}")
    elif gone.endpoints:
        say(f"endpoints that they registered go on: {', '.join(gone.endpoints)} (--endpoints revokes them)")


def _whole_id(client: Client, text: str) -> str:
    """Return the id of the token that a person means. Raises Invalid."""
    known = client.tokens.list()
    if any(t.id == text for t in known):
        return text
    found = [t for t in known if not t.revoked and (t.id.startswith((text, f"tok_{text}")) or t.name == text)]
    if len(found) > 1:
        raise ambiguous(text, "tokens", [f"{t.id}  {t.name}, of {t.subject}" for t in found], "give the id")
    return found[0].id if found else text
