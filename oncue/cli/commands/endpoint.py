"""`oncue endpoint`: commands for the machine of an agent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from oncue.cli import completers
from oncue.cli.command_group import Group
from oncue.cli.output import as_json, facts, json_option, say, when
from oncue.config import default_data
from oncue.errors import Conflict, Invalid, NotFound, OncueError, Refused
from oncue.processes.secrecy import agent_environment

CONNECT_S = 15.0  # longest wait for an agent's first connection
REFUSED_S = 5.0  # an agent that was refused for so long is stopped

_dir = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False),
    help="Folder of the endpoint (default: endpoints/NAME in the data folder).",
)


def _folder(folder: str | None, name: str) -> Path:
    return Path(folder).expanduser().absolute() if folder else default_data().absolute() / "endpoints" / name


def _reachable(bridge: str, url: str) -> str:
    """Return the bridge's address, with a host that other machines can reach.

    A wildcard is replaced by the host of the API's URL.
    """
    host, _, port = bridge.removeprefix("tcp://").rpartition(":")
    if host.strip("[]") not in ("0.0.0.0", "::"):
        return bridge
    from oncue.curve import address

    return address(urlsplit(url).hostname or host, port)


@click.group(cls=Group)
def endpoint() -> None:
    """Register, start and stop an endpoint on this machine.

    \b
    Example:
      oncue endpoint register polaris && oncue endpoint start polaris --detach
    """


@endpoint.command()
@click.argument("name")
@_dir
@click.option("--workers", type=click.IntRange(0), help="Number of workers; 0: one per core (the default).")
@click.option(
    "--lost-after",
    metavar="DURATION",
    help="After this time without a connection its running tasks are lost; 0: never (the default).",
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Label; replaces all labels. Can be repeated.")
@click.option("--no-labels", is_flag=True, help="Remove all labels.")
@click.option(
    "--bridge",
    metavar="tcp://HOST:PORT",
    help='Address to connect to; "": the one that the server gives (the default).',
)
@json_option
def register(
    name: str,
    folder: str | None,
    workers: int | None,
    lost_after: str | None,
    labels: tuple[str, ...],
    no_labels: bool,
    bridge: str | None,
    json_: bool,
) -> None:
    """Register an endpoint of this machine at the server.

    The server is that of ONCUE_URL, with ONCUE_TOKEN. Keys are created; the secret key stays on
    this machine. Registering again changes only the options given; a revoked endpoint gets new
    keys.

    \b
    Example:
      ONCUE_URL=https://oncue.example ONCUE_TOKEN=… oncue endpoint register polaris
    """
    from oncue.cli.agent_process import running_agent
    from oncue.cli.client import connected, seconds
    from oncue.cli.registration import register_endpoint
    from oncue.endpoint.settings import load_or_default, save

    wrong = [label for label in labels if "=" not in label]
    if wrong:
        raise Invalid(f"--label {wrong[0]!r} is not name=value", remedy="for example --label site=alcf")
    if labels and no_labels:
        raise Invalid("--label and --no-labels exclude each other", remedy="give one of them")
    place = _folder(folder, name)
    lost_after_s = seconds(lost_after)
    pairs = dict(label.split("=", 1) for label in labels) if labels or no_labels else None
    with connected() as client:
        lost_after_ms = None if lost_after_s is None else round(lost_after_s * 1000)
        registered = register_endpoint(client, place, name, lost_after_ms=lost_after_ms, labels=pairs)
        settings = load_or_default(place, registered.id, registered.name)
        given = _reachable(registered.bridge, client.http.target()[0])
    before = settings.workers
    if bridge is not None or not settings.bridge_given:
        # The server's local.json is kept if the server is the same one and --bridge is not given.
        file = settings.bridge_file if not bridge and settings.server_key == registered.server_key else ""
        settings = msgspec.structs.replace(
            settings, bridge=bridge or given, bridge_given=bool(bridge), bridge_file=file
        )
    settings = msgspec.structs.replace(
        settings, server_key=registered.server_key, workers=before if workers is None else workers
    )
    save(place, settings)
    if json_:
        as_json({"id": registered.id, "name": registered.name, "dir": str(place), "bridge": settings.bridge})
    else:
        say(f"{registered.name} is registered ({registered.id}); its agent will connect to {settings.bridge}")
        if settings.workers != before and running_agent(place):
            say(f"  restart its agent to change the number of workers: oncue endpoint stop {name}, then start")
        say(f"  start it: oncue endpoint start {name}" + (f" --dir {place}" if folder else ""))


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@click.option("--detach", is_flag=True, help="Run in the background; return when it is connected.")
def start(name: str, folder: str | None, detach: bool) -> None:
    """Start the agent of an endpoint.

    It runs until Ctrl-C, or with --detach until `oncue endpoint stop`.

    \b
    Example:
      oncue endpoint start polaris --detach
    """
    from oncue.cli.agent_process import agent_command, running_agent, start_agent, stop_child
    from oncue.cli.local_server import await_true
    from oncue.endpoint.settings import load, register_again

    place = _folder(folder, name)
    load(place)
    pid = running_agent(place)
    if pid:
        raise Conflict(f"the agent of {place} runs already (pid {pid})", remedy=f"stop it: oncue endpoint stop {name}")
    if not detach:
        # The agent replaces this process, so that it gets the signals of a terminal or supervisor.
        sys.stdout.flush()
        os.execve(sys.executable, agent_command(place, by_hand=True), agent_environment(os.environ))
    path = place / "agent.log"
    with path.open("ab") as out:
        began = out.tell()
        process = start_agent(
            place, by_hand=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    now: dict[str, Any] = {}
    refused_at = 0.0

    def settled() -> bool:
        """Return True if the agent is connected, has ended, or is refused for good.

        Refused for good: for REFUSED_S, since a server that is starting refuses endpoints until it
        has read the registry.
        """
        nonlocal now, refused_at
        now = _status(place) or {}
        if now.get("pid") != process.pid:
            now = {}
        refused_at = (refused_at or time.monotonic()) if now.get("why") else 0.0
        refused = refused_at and time.monotonic() - refused_at > REFUSED_S
        return process.poll() is not None or now.get("state") == "connected" or bool(refused)

    await_true(settled, CONNECT_S)
    if process.poll() is not None:
        _raise_if_refused(place, process.pid, name)
        printed = path.read_bytes()[began:][-1000:].decode("utf-8", "replace").strip()
        raise OncueError(f"the agent ended at once:\n{printed}", remedy=f"its log is {path}")
    if now.get("why"):
        stop_child(process)
        raise Refused(f"{now['why']}; the agent was stopped", remedy=register_again(name, place))
    say(f"the agent runs (pid {process.pid}); its log is {path}")
    if now.get("state") != "connected":
        say("  it is not connected to its server yet and keeps trying: is the server up?", err=True)
    process.returncode = 0  # it runs on: no warning about a child that nobody waits for


def _raise_if_refused(place: Path, pid: int, name: str) -> None:
    """Raise Refused if this agent has ended because the server refused it."""
    from oncue.endpoint.settings import register_again

    now = _status(place) or {}
    if now.get("pid") == pid and now.get("state") == "refused":
        raise Refused(f"{now['why']}; the agent has ended", remedy=now.get("remedy") or register_again(name, place))


def _status(place: Path) -> dict[str, Any] | None:
    try:
        content = msgspec.json.decode((place / "status.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return content if isinstance(content, dict) else None


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@json_option
def stop(name: str, folder: str | None, json_: bool) -> None:
    """Stop the agent of an endpoint.

    Running tasks get a few seconds to end; waiting tasks stay in the journal for the next start.
    The endpoint of `oncue up` stays stopped until `oncue endpoint start`.

    \b
    Example:
      oncue endpoint stop polaris
    """
    from oncue.cli.agent_process import ENDED, running_agent, stop_agent
    from oncue.endpoint.settings import load, mark_stopped

    place = _folder(folder, name)
    pid = running_agent(place)
    supervised = bool(pid or (place / "agent.json").exists()) and bool(load(place).bridge_file)
    if supervised:
        mark_stopped(place)  # before the agent ends: `oncue up` would restart it
        pid = running_agent(place)
    if not pid and not supervised:
        raise NotFound(f"no agent runs in {place}", remedy="see `oncue endpoint status`")
    how = ""
    if pid:
        pid, how = stop_agent(place)
        if pid and not how:
            raise OncueError(
                f"the agent (pid {pid}) has not ended, not even by SIGKILL",
                remedy="it waits for its disk or a file server; it ends when that answers",
            )
    if json_:
        as_json({"name": name, "dir": str(place), "pid": pid, "killed": how == "KILL"})
        return
    say(f"the agent (pid {pid}) {ENDED[how]}" if pid else "no agent runs")
    if supervised:
        say(f"  `oncue up` does not restart it: it stays stopped until `oncue endpoint start {name}`")


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@json_option
def status(name: str, folder: str | None, json_: bool) -> None:
    """Show the state of an endpoint's agent on this machine.

    \b
    Example:
      oncue endpoint status polaris
    """
    from oncue.cli.agent_process import running_agent
    from oncue.endpoint.settings import is_marked_stopped, load, register_again

    place = _folder(folder, name)
    settings = load(place)
    pid = running_agent(place)
    answer = {"name": settings.name, "id": settings.id, "dir": str(place), "running": bool(pid), "pid": pid}
    answer["held"] = is_marked_stopped(place)
    now = _status(place)
    if now is not None:  # written on changes; a killed agent leaves its last one behind
        now["current"] = bool(pid) and now.get("pid") == pid
        now["written_us"] = (place / "status.json").stat().st_mtime_ns // 1000
    if not pid and (now or {}).get("state") != "refused" and _revoked(settings.id):
        # It was not connected when it was revoked, so its status does not have it.
        now = (now or {}) | {"state": "revoked", "remedy": register_again(name, place)}
    answer["status"] = now
    if json_:
        as_json(answer)
        return
    answer.pop("status")
    held = answer.pop("held")
    facts([(k, "no" if v is False else v) for k, v in answer.items()])
    facts([("held", held and f"stopped by hand; to start it: oncue endpoint start {name}")])
    if isinstance(now, dict):
        written = when(now.pop("written_us", 0))
        if not now.pop("current", True):
            say(f"the agent that wrote this status at {written} does not run any more:", err=True)
        facts([(k, v) for k, v in now.items() if k not in answer])


def _revoked(id: str) -> bool:
    """Return True if a server can be reached and lists this endpoint as revoked."""
    from oncue.client import Client

    try:
        with Client(patience=2) as client:
            return any(e.id == id and e.state == "revoked" for e in client.endpoints.list())
    except OncueError:
        return False
