"""`oncue events`."""

from __future__ import annotations

import uuid
from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected, json_file
from oncue.cli.commands.tasks import follow
from oncue.cli.output import as_json, json_option, listing, say, when
from oncue.errors import Invalid
from oncue.protocol.api import EventInfo
from oncue.protocol.cloudevents import time_text


@click.group()
def events() -> None:
    """List, inspect and send events.

    \b
    Example:
      oncue events list --type oncue.file.ready
    """


@events.command("list")
@click.option("--type", "type_", default="", help="Only events of this type.")
@click.option("--source", default="", help="Only events of this source.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="List at most so many.")
@json_option
def list_(type_: str, source: str, limit: int, json_: bool) -> None:
    """List the newest events.

    \b
    Example:
      oncue events list --limit 5 --json
    """
    head = ("OFFSET", "AT", "TYPE", "SOURCE", "SUBJECT", "TASKS")
    with connected() as client:
        found = client.events.list(type=type_, source=source, limit=limit)
        listing(found, json_, head, _row, "no events")


def _row(e: EventInfo) -> tuple[Any, ...]:
    attributes = (e.event.get(name) or "" for name in ("type", "source", "subject"))
    return (e.offset, when(e.at_us), *attributes, len(e.tasks))


@events.command()
@click.argument("offset", type=int)
@json_option
def show(offset: int, json_: bool) -> None:
    """Show the event at OFFSET, the rules that it fired, and their tasks, as JSON.

    \b
    Example:
      oncue events show 17
    """
    with connected() as client:
        as_json(client.events.get(offset))


@events.command()
@click.option("--type", "type_", help="Type of the event, such as scan.done.")
@click.option("--source", help="Source of the event, a URI.")
@click.option("--subject", help="Subject of the event within its source, such as a file name.")
@click.option("--data", help="Data of the event, as JSON.")
@click.option("--id", "id_", help="Id of the event: source and id make it unique (default: random).")
@click.option("--time", help="Time of the event, such as 2026-11-23T20:59:29Z (default: now).")
@click.option(
    "--file",
    "path",
    shell_complete=completers.files,
    help="File with a CloudEvent in JSON, instead of the other options; - is stdin.",
)
@json_option
def emit(
    type_: str | None,
    source: str | None,
    subject: str | None,
    data: str | None,
    id_: str | None,
    time: str | None,
    path: str | None,
    json_: bool,
) -> None:
    """Send an event, and print its id once it is durable.

    \b
    Example:
      oncue events emit --type scan.done --source /2bm --data '{"path": "/data/scan_1.h5"}'
    """
    event = _event(type_, source, subject, data, path)
    event.setdefault("specversion", "1.0")
    if id_ is not None or "id" not in event:
        event["id"] = id_ or uuid.uuid4().hex
    if time is not None or "time" not in event:
        event["time"] = time_text() if time is None else time
    with connected() as client:
        done = client.events.emit(event)
    as_json({"id": event["id"], "position": done.position}) if json_ else say(event["id"])


def _event(
    type_: str | None, source: str | None, subject: str | None, data: str | None, path: str | None
) -> dict[str, Any]:
    if path is not None:
        content = json_file(path)
        if not isinstance(content, dict):
            raise Invalid(f"{path} is not an event", remedy="an event is a JSON object with type, source and data")
        return content
    if not type_ or not source:
        raise Invalid("an event needs --type and --source", remedy="or give a CloudEvent with --file")
    event: dict[str, Any] = {"type": type_, "source": source}
    if subject is not None:
        event["subject"] = subject
    if data is not None:
        try:
            event |= {"datacontenttype": "application/json", "data": msgspec.json.decode(data)}
        except msgspec.DecodeError as e:
            raise Invalid(f"--data is not JSON: {e}", remedy="text needs quotes inside: --data '\"text\"'") from None
    return event


@events.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON lines.")
def tail(json_: bool) -> None:
    """Print events as they arrive, one per line, until Ctrl-C.

    \b
    Example:
      oncue events tail
    """
    follow(("event",), json_)
