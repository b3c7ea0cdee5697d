"""`oncue endpoints`."""

from __future__ import annotations

from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.output import as_json, facts, json_option, listing, say, when
from oncue.protocol.api import EndpointInfo
from oncue.quantities import duration_text


@click.group()
def endpoints() -> None:
    """List, inspect and revoke endpoints.

    \b
    Example:
      oncue endpoints list
    """


@endpoints.command("list")
@json_option
def list_(json_: bool) -> None:
    """List the endpoints that you may use.

    \b
    Example:
      oncue endpoints list --json
    """
    head = ("NAME", "STATE", "SINCE", "WORKERS", "BUSY", "QUEUED", "OPEN", "HOST", "OWNER", "WHY")
    nothing = "no endpoints: `oncue up` starts one, `oncue endpoint register` adds one"
    with connected() as client:
        listing(client.endpoints.list(), json_, head, _row, nothing)


def _row(e: EndpointInfo) -> tuple[Any, ...]:
    return (e.name, e.state, when(e.since_us), e.workers, e.busy, e.queued, e.waiting, e.host, e.owner, e.why)


@endpoints.command()
@click.argument("name", shell_complete=completers.endpoints)
@json_option
def show(name: str, json_: bool) -> None:
    """Show one endpoint, by name or id.

    \b
    Example:
      oncue endpoints show polaris
    """
    with connected() as client:
        e = client.endpoints.get(name)
    if json_:
        as_json(e)
        return
    facts([("name", e.name), ("id", e.id), ("state", e.state), ("why", e.why), ("since", when(e.since_us))])
    facts([("workers", e.workers), ("busy", e.busy), ("queued", e.queued), ("open tasks", e.waiting), ("host", e.host)])
    lost_after = duration_text(e.lost_after_ms) if e.lost_after_ms else "never"
    facts([("agent", e.agent_version), ("python", e.python), ("owner", e.owner), ("labels", e.labels)])
    facts([("lost after", lost_after)])


@endpoints.command()
@click.argument("name", shell_complete=completers.endpoints)
@click.option("--yes", is_flag=True, help="Revoke without asking.")
@json_option
def revoke(name: str, yes: bool, json_: bool) -> None:
    """Revoke an endpoint's key and close its connection.

    \b
    Example:
      oncue endpoints revoke old-laptop --yes
    """
    if not yes:
        click.confirm(f"Revoke {name}? Its agent cannot connect with this key again.", abort=True, err=json_)
    with connected() as client:
        client.endpoints.revoke(name)
    as_json({"name": name, "revoked": True}) if json_ else say(f"{name} is revoked")
