"""`oncue events`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import click
import msgspec

from oncue.cli import completers
from oncue.cli.client import connected, json_file
from oncue.cli.command_group import Group
from oncue.cli.output import ambiguous, as_json, json_option, listing, say, when, when_listed
from oncue.cli.tasks.filters import (
    State,
    check_period,
    cursor_option,
    since_option,
    tell_more,
    total_text,
    until_option,
)
from oncue.cli.tasks.live import ended, follow_json
from oncue.cli.tasks.tail import READ_EVENTS, READ_S, NewEvents, event_line
from oncue.client import Client
from oncue.errors import Invalid, NotFound
from oncue.protocol.api import EventInfo
from oncue.protocol.cloudevents import time_text

MOST = 10  # events that are listed if an id means several


@click.group(cls=Group)
def events() -> None:
    """List, inspect and send events.

    \b
    Example:
      oncue events list --type oncue.file.ready
    """


@events.command("list")
@click.option("--type", "type_", default="", help="Only events of this type.")
@click.option("--source", default="", help="Only events of this source.")
@click.option("--id", "id_", default="", help="Only events with this id, or whose id begins so.")
@click.option("--rule", default="", shell_complete=completers.rules, help="Only events that this rule fired for.")
@click.option("--endpoint", default="", shell_complete=completers.endpoints, help="Only events with a task there.")
@click.option(
    "--state",
    type=State(),
    default="",
    shell_complete=completers.states,
    help="Only events with a task in such a state.",
)
@since_option
@until_option
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="List at most so many.")
@cursor_option
@json_option
def list_(type_: str, source: str, id_: str, limit: int, cursor: str, json_: bool, **filters: Any) -> None:
    """List the newest events.

    \b
    Example:
      oncue events list --limit 5 --json
      oncue events list --since 2h --rule reconstruct --state failed
    """
    head = ("OFFSET", "AT", "TYPE", "SOURCE", "SUBJECT", "TASKS")
    check_period(filters["since_us"], filters["until_us"])
    with connected() as client:
        given = filters | {"type": type_, "source": source, "id": id_}
        found, following = client.events.page(cursor=cursor, limit=limit, **given)
        total = total_text(client.events.count, given) if following else ""
    listing(found, json_, head, _row, "no events")
    tell_more(len(found), total, following, "events", json_)


def _row(e: EventInfo) -> tuple[Any, ...]:
    attributes = (e.event.get(name) or "" for name in ("type", "source", "subject"))
    return (e.offset, when_listed(e.at_us), *attributes, len(e.tasks))


@events.command()
@click.argument("event")
@json_option
def show(event: str, json_: bool) -> None:
    """Show an event, the rules that it fired, and their tasks, as JSON.

    EVENT is its offset, as lists have it, or its id, of which the beginning is enough.

    \b
    Example:
      oncue events show 17
    """
    with connected() as client:
        as_json(client.events.get(int(event)) if is_offset(event) else event_by_id(client, event))


def is_offset(text: str) -> bool:
    """Return True if the text is an offset, not an id."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def event_by_id(client: Client, text: str) -> EventInfo:
    """Return the event of this id, or whose id begins so.

    Raises NotFound; Invalid if it means several.
    """
    found = list(client.events.list(id=text, limit=MOST))
    whole = [e for e in found if e.event.get("id") == text]
    candidates = whole[:1] or found
    if not candidates:
        raise NotFound(f"there is no event {text!r}", remedy="oncue events list shows what there is")
    if len(candidates) > 1:
        listed = [f"{e.offset}  {when(e.at_us)}  {e.event.get('id')}" for e in candidates]
        raise ambiguous(text, "events", listed, "give more of the id, or the offset")
    return candidates[0]


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
@click.option(
    "--lines", "-n", "count", type=click.IntRange(0, 500), default=10, show_default=True, help="First show so many."
)
def tail(json_: bool, count: int) -> None:
    """Print events as they arrive, until Ctrl-C. The newest is the last line.

    With --json, only what happens from now on.

    \b
    Example:
      oncue events tail -n 3
    """
    with connected() as client:
        if json_:
            follow_json(client, ("event",))
        live = client.live("event")
        next(live, None)  # what happens from now on is not missed
        new = NewEvents(client)
        earlier = new.read(max(count, 1))  # at least one, to know what is new
        for e in earlier if count else ():
            click.echo(event_line(e))
        for kind, item in live:
            if kind == "event" and not new.has(item.get("offset")):
                time.sleep(READ_S)  # many come at once: one read shows them all
                for e in new.read(READ_EVENTS):
                    click.echo(event_line(e))
        ended(client)
