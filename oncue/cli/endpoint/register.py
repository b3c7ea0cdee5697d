"""`oncue endpoint register`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from oncue.cli.endpoint.folder import dir_option, folder_of
from oncue.cli.output import as_json, json_option, say
from oncue.errors import Invalid
from oncue.protocol.api import Registered

_OPTIONS = (
    click.option("--workers", type=click.IntRange(0), help="Number of workers; 0: one per core (the default)."),
    click.option(
        "--lost-after",
        metavar="DURATION",
        help="After this time without a connection its running tasks are lost; 0: never (the default).",
    ),
    click.option(
        "--label", "labels", multiple=True, metavar="K=V", help="Label; replaces all labels. Can be repeated."
    ),
    click.option("--no-labels", is_flag=True, help="Remove all labels."),
    click.option(
        "--bridge",
        metavar="tcp://HOST:PORT",
        help='Address to connect to; "": the one that the server gives (the default).',
    ),
    click.option("--max-tasks", type=click.IntRange(0), help="Replace a worker after so many tasks; 0: never."),
    click.option("--max-memory", metavar="SIZE", help="Replace a worker that holds more after a task; 0: never."),
    click.option("--threads", type=click.IntRange(0), help="Threads of BLAS and OpenMP in a worker; 0: cores/workers."),
)


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `register` and `init`. None: stays as it is."""

    workers: int | None = None
    lost_after: str | None = None
    labels: tuple[str, ...] = ()
    no_labels: bool = False
    bridge: str | None = None
    max_tasks: int | None = None
    max_memory: str | None = None
    threads: int | None = None


def registration_options(f: Any) -> Any:
    """Add the options of Registration to a command."""
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


@click.command()
@click.argument("name")
@dir_option
@registration_options
@json_option
def register(name: str, folder: str | None, json_: bool, **given: Any) -> None:
    """Register an endpoint of this machine at the server.

    The server is that of ONCUE_URL, with ONCUE_TOKEN. Keys are created; the secret key stays on
    this machine. Registering again changes only the options given; a revoked endpoint gets new
    keys. `oncue endpoint init` also writes an endpoint.yaml.

    \b
    Example:
      ONCUE_URL=https://oncue.example ONCUE_TOKEN=… oncue endpoint register polaris
    """
    place = folder_of(folder, name)
    registered, bridge, notes = register_here(place, name, Registration(**given))
    if json_:
        as_json({"id": registered.id, "name": registered.name, "dir": str(place), "bridge": bridge})
        return
    say(f"{registered.name} is registered ({registered.id}); its agent will connect to {bridge}")
    for note in notes:
        say(f"  {note}")
    say(f"  start it: oncue endpoint start {name}" + (f" --dir {place}" if folder else ""))


def register_here(place: Path, name: str, given: Registration) -> tuple[Registered, str, list[str]]:
    """Register at the server and write `agent.json`.

    Return the server's answer, the address to dial, and notes for the user.
    """
    from oncue.cli.agent_process import running_agent
    from oncue.cli.client import connected, seconds
    from oncue.cli.registration import register_endpoint
    from oncue.endpoint.settings import load_or_default, save

    labels = _labels(given)
    lost_after_s = seconds(given.lost_after)
    with connected() as client:
        lost_after_ms = None if lost_after_s is None else round(lost_after_s * 1000)
        registered = register_endpoint(client, place, name, lost_after_ms=lost_after_ms, labels=labels)
        before = load_or_default(place, registered.id, registered.name)
        dialled = reachable(registered.bridge, client.http.target()[0])
    settings = before
    if given.bridge is not None or not settings.bridge_given:
        # The server's local.json is kept if the server is the same one and --bridge is not given.
        file = settings.bridge_file if not given.bridge and settings.server_key == registered.server_key else ""
        settings = msgspec.structs.replace(
            settings, bridge=given.bridge or dialled, bridge_given=bool(given.bridge), bridge_file=file
        )
    own = {name: getattr(given, name) for name in ("workers", "max_tasks", "max_memory", "threads")}
    changed = {name: value for name, value in own.items() if value is not None}
    settings = msgspec.structs.replace(settings, server_key=registered.server_key, **changed)
    settings.limits()  # raises for a wrong size
    save(place, settings)
    notes = []
    if any(getattr(before, name) != value for name, value in changed.items()) and running_agent(place):
        notes.append(f"its agent takes this at its next start: oncue endpoint restart {name}")
    return registered, settings.bridge, notes


def _labels(given: Registration) -> dict[str, str] | None:
    """Return the labels to set; None if they stay. Raises Invalid."""
    wrong = [label for label in given.labels if "=" not in label]
    if wrong:
        raise Invalid(f"--label {wrong[0]!r} is not name=value", remedy="for example --label site=alcf")
    if given.labels and given.no_labels:
        raise Invalid("--label and --no-labels exclude each other", remedy="give one of them")
    return dict(label.split("=", 1) for label in given.labels) if given.labels or given.no_labels else None


def reachable(bridge: str, url: str) -> str:
    """Return the bridge's address, with a host that other machines can reach.

    A wildcard is replaced by the host of the API's URL.
    """
    host, _, port = bridge.removeprefix("tcp://").rpartition(":")
    if host.strip("[]") not in ("0.0.0.0", "::"):
        return bridge
    from oncue.curve import address

    return address(urlsplit(url).hostname or host, port)
