"""`oncue endpoints`."""

from __future__ import annotations

from typing import Any

import click

from oncue.cli import completers
from oncue.cli.client import connected
from oncue.cli.command_group import Group
from oncue.cli.output import ambiguous, as_json, facts, json_option, listing, say, when
from oncue.client import Client
from oncue.protocol.api import EndpointInfo
from oncue.quantities import duration_text, size_text

ID_CHARS = 19  # of an endpoint's id


@click.group(cls=Group)
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
        e = client.endpoints.get(whole_name(client, name))
    if json_:
        as_json(e)
        return
    facts([("name", e.name), ("id", e.id), ("state", e.state), ("why", e.why), ("since", when(e.since_us))])
    facts([("workers", e.workers), ("busy", e.busy), ("queued", e.queued), ("open tasks", e.waiting), ("host", e.host)])
    lost_after = duration_text(e.lost_after_ms) if e.lost_after_ms else "never"
    facts([("agent", e.agent_version), ("python", e.python), ("owner", e.owner), ("labels", e.labels)])
    facts([("lost after", lost_after)])
    if e.cores:
        memory = f"{size_text(e.memory_used_bytes)} of {size_text(e.memory_bytes)}"
        facts([("idle", e.idle), ("starting", e.starting), ("cores", e.cores), ("memory", memory)])
    if e.scheduler:
        _show_blocks(e)


def _show_blocks(e: EndpointInfo) -> None:
    hours = f"{e.node_hours:.2f}"
    if e.node_hours_limit:
        hours += f" of {e.node_hours_limit:g} in {duration_text(e.node_hours_period_s * 1000)}"
    facts([("scheduler", e.scheduler), ("nodes", e.nodes), ("node-hours", hours), ("tasks wait", e.waiting_for)])
    if e.breaker or e.submits_failed:
        facts([("breaker", e.breaker or "closed"), ("failed submissions", e.submits_failed)])
    for b in e.blocks:
        size = f"{b.nodes} nodes, {b.busy} of {b.workers} workers busy"
        end = f", until {when(b.ends_us)}" if b.ends_us else ""
        facts([(f"block {b.id}", f"{b.state}, {size}{end}" + (f": {b.reason}" if b.reason else ""))])


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
        client.endpoints.revoke(whole_name(client, name))
    as_json({"name": name, "revoked": True}) if json_ else say(f"{name} is revoked")


def whole_name(client: Client, text: str) -> str:
    """Return the id that begins so, or the name as it is. Raises Invalid."""
    if not text.startswith("ep_") or len(text) >= ID_CHARS:
        return text
    found = [e for e in client.endpoints.list() if e.id.startswith(text) and e.state != "revoked"]
    if len(found) > 1:
        raise ambiguous(text, "endpoints", [f"{e.id}  {e.name}" for e in found], "give more of the id")
    return found[0].id if found else text
