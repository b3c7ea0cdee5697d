"""`oncue tokens`."""

from __future__ import annotations

import math

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected, seconds
from oncue.cli.output import as_json, json_option, listing, say, when
from oncue.errors import Invalid
from oncue.protocol.api import TokenInfo, TokenRequest


@click.group()
def tokens() -> None:
    """Create, list and revoke tokens.

    \b
    Example:
      oncue tokens create laptop
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
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["admin", "user", "emit", "read", "metrics"]),
    help="What the token may do (default: user). Can be repeated.",
)
@click.option("--expires", metavar="DURATION", help="Time until the token expires, such as 30d (default: never).")
@click.option("--subject", default="", help="Person that the token is for (default: yourself).")
@json_option
def create(name: str, scopes: tuple[str, ...], expires: str | None, subject: str, json_: bool) -> None:
    """Create a token and print it. It is shown only this once.

    \b
    Example:
      oncue tokens create daq --scope emit --expires 30d
    """
    if not name.strip():
        raise Invalid("the token needs a name", remedy="for example oncue tokens create laptop")
    expires_s = seconds(expires)
    if expires_s is not None and expires_s < 1:
        raise Invalid(f"--expires {expires} is less than a second", remedy="leave it out for a token without expiry")
    request = TokenRequest(
        name=name, scopes=list(scopes) or ["user"], expires_s=math.ceil(expires_s or 0), subject=subject
    )
    with connected() as client:
        made = client.tokens.create(request)
    as_json(made) if json_ else say(made.token)


@tokens.command()
@click.argument("token_id", shell_complete=completers.tokens)
@click.option("--endpoints", is_flag=True, help="Also revoke the endpoints that these tokens registered.")
@json_option
def revoke(token_id: str, endpoints: bool, json_: bool) -> None:
    """Revoke a token, and all that were made by it, at once.

    \b
    Example:
      oncue tokens revoke 3f2a
    """
    with connected() as client:
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
