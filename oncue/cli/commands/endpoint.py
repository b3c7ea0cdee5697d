"""`oncue endpoint`: on the machine of an agent."""

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
from oncue.cli.output import as_json, facts, json_option, say, when
from oncue.config import default_data
from oncue.errors import Conflict, Invalid, NotFound, OncueError, Refused

GREETING_S = 15.0  # that an agent gets for its first greeting
REFUSED_S = 5.0

_dir = click.option(
    "--dir", "folder", type=click.Path(file_okay=False), help="The endpoint's folder (default: by its name)."
)


def _folder(folder: str | None, name: str) -> Path:
    return Path(folder).expanduser().absolute() if folder else default_data().absolute() / "endpoints" / name


def _reachable(bridge: str, url: str) -> str:
    """A server that listens on all addresses cannot say which of them leads to it: the API's own host does."""
    host, _, port = bridge.removeprefix("tcp://").rpartition(":")
    if host.strip("[]") not in ("0.0.0.0", "::"):
        return bridge
    found = urlsplit(url).hostname or host
    return f"tcp://[{found}]:{port}" if ":" in found else f"tcp://{found}:{port}"


@click.group()
def endpoint() -> None:
    """On an endpoint's machine: register, start and stop its agent.

    \b
    Example:
      oncue endpoint register polaris && oncue endpoint start polaris --detach
    """


@endpoint.command()
@click.argument("name")
@_dir
@click.option("--workers", type=click.IntRange(0), help="0: one a core (the default).")
@click.option(
    "--lost-after",
    metavar="DURATION",
    help="Away for longer than this, its running tasks are lost; 0: never (the default).",
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="All its labels: those it had are gone.")
@click.option("--no-labels", is_flag=True, help="It has none any more.")
@click.option("--bridge", metavar="tcp://HOST:PORT", help='Where to dial; "": as the server says (the default).')
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
    """Make this endpoint's keys and tell the server (ONCUE_URL, ONCUE_TOKEN). The secret key stays here.
    Again: what is not given stays as it is. Where the endpoint was revoked, it gets new keys.

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
        raise Invalid("--label and --no-labels", remedy="give one of them")
    place = _folder(folder, name)
    lost_after_s = seconds(lost_after)
    pairs = dict(label.split("=", 1) for label in labels) if labels or no_labels else None
    with connected() as client:
        lost_after_ms = None if lost_after_s is None else round(lost_after_s * 1000)
        found = register_endpoint(client, place, name, lost_after_ms=lost_after_ms, labels=pairs)
        settings = load_or_default(place, found.id, found.name)
        told = _reachable(found.bridge, client.http.target()[0])
    before = settings.workers
    if bridge is not None or not settings.bridge_given:
        # The file in which `oncue up` says where it is: of that server only, and what is given wins.
        file = settings.bridge_file if not bridge and settings.server_key == found.server_key else ""
        settings = msgspec.structs.replace(settings, bridge=bridge or told, bridge_given=bool(bridge), bridge_file=file)
    settings = msgspec.structs.replace(
        settings, server_key=found.server_key, workers=before if workers is None else workers
    )
    save(place, settings)
    if json_:
        as_json({"id": found.id, "name": found.name, "dir": str(place), "bridge": settings.bridge})
    else:
        say(f"{found.name} is registered ({found.id}); its agent will dial {settings.bridge}")
        if settings.workers != before and running_agent(place):
            say(
                f"  its agent runs: it takes the number of workers at its next start (oncue endpoint stop {name}, start)"
            )
        say(f"  start it: oncue endpoint start {name}" + (f" --dir {place}" if folder else ""))


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@click.option("--detach", is_flag=True, help="Go on in the background.")
def start(name: str, folder: str | None, detach: bool) -> None:
    """Run the agent, here or in the background.

    \b
    Example:
      oncue endpoint start polaris --detach
    """
    from oncue.cli.agent_process import agent_command, running_agent, start_agent, stop_agent
    from oncue.cli.local_server import await_true
    from oncue.endpoint.settings import load, register_again

    place = _folder(folder, name)
    load(place)
    pid = running_agent(place)
    if pid:
        raise Conflict(f"the agent of {place} runs already (pid {pid})", remedy=f"stop it: oncue endpoint stop {name}")
    if not detach:
        # In this process's place: signals of a terminal or a supervisor are the agent's own, and nobody is left over.
        sys.stdout.flush()
        os.execv(sys.executable, agent_command(place, by_hand=True))
    path = place / "agent.log"
    with path.open("ab") as out:
        began = out.tell()
        process = start_agent(
            place, by_hand=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    now: dict[str, Any] = {}
    refused_at = 0.0

    def greeted() -> bool:
        """Or it ended, or the server goes on refusing its key: one that starts does not know its endpoints at once."""
        nonlocal now, refused_at
        now = _status(place) or {}
        if now.get("pid") != process.pid:
            now = {}
        refused_at = (refused_at or time.monotonic()) if now.get("why") else 0.0
        refused = refused_at and time.monotonic() - refused_at > REFUSED_S
        return process.poll() is not None or now.get("state") == "connected" or bool(refused)

    await_true(greeted, GREETING_S)
    if process.poll() is not None:
        _refused(place, process.pid, name)
        said = path.read_bytes()[began:][-1000:].decode("utf-8", "replace").strip()
        raise OncueError(f"the agent ended at once:\n{said}", remedy=f"all that it said is in {path}")
    if now.get("why"):
        stop_agent(process.pid, process)
        raise Refused(f"{now['why']}; the agent was stopped", remedy=register_again(name, place))
    say(f"the agent runs (pid {process.pid}); it writes to {path}")
    if now.get("state") != "connected":
        say("  it has not reached its server yet, and goes on trying: is the server up?", err=True)
    process.returncode = 0  # it goes on; nothing here waits for it


def _refused(place: Path, pid: int, name: str) -> None:
    """Raises Refused, where that is why this agent has ended."""
    from oncue.endpoint.settings import register_again

    now = _status(place) or {}
    if now.get("pid") == pid and now.get("state") == "refused":
        raise Refused(f"{now['why']}; the agent has ended", remedy=now.get("remedy") or register_again(name, place))


def _status(place: Path) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode((place / "status.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return found if isinstance(found, dict) else None


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@json_option
def stop(name: str, folder: str | None, json_: bool) -> None:
    """Stop the agent: running tasks get a grace, the rest stays in its journal for the next start. The endpoint of
    `oncue up` stays stopped, too, until `oncue endpoint start`.

    \b
    Example:
      oncue endpoint stop polaris
    """
    from oncue.cli.agent_process import running_agent, stop_agent
    from oncue.endpoint.settings import load, mark_stopped

    place = _folder(folder, name)
    pid = running_agent(place)
    kept = bool(pid or (place / "agent.json").exists()) and bool(load(place).bridge_file)
    if kept:
        mark_stopped(place)  # before its end, which `oncue up` sees
        pid = running_agent(place)
    if not pid and not kept:
        raise NotFound(f"no agent runs in {place}", remedy="`oncue endpoint status` shows what is there")
    if pid:
        stop_agent(pid, None)
    if json_:
        as_json({"name": name, "dir": str(place), "pid": pid})
        return
    say(f"the agent (pid {pid}) has ended" if pid else "no agent runs")
    if kept:
        say(f"  `oncue up` does not start it: it stays stopped until `oncue endpoint start {name}`")


@endpoint.command()
@click.argument("name", default="local", shell_complete=completers.local_endpoints)
@_dir
@json_option
def status(name: str, folder: str | None, json_: bool) -> None:
    """What the agent on this machine does now.

    \b
    Example:
      oncue endpoint status polaris
    """
    from oncue.cli.agent_process import running_agent
    from oncue.endpoint.settings import is_marked_stopped, load, register_again

    place = _folder(folder, name)
    settings = load(place)
    pid = running_agent(place)
    found = {"name": settings.name, "id": settings.id, "dir": str(place), "running": bool(pid), "pid": pid}
    found["held"] = is_marked_stopped(place)
    now = _status(place)
    if now is not None:  # it is written when something changes; an agent that was killed leaves what it wrote last
        now["current"] = bool(pid) and now.get("pid") == pid
        now["written_us"] = (place / "status.json").stat().st_mtime_ns // 1000
    if not pid and (now or {}).get("state") != "refused" and _revoked(settings.id):
        # It was away then, and has not been told.
        now = (now or {}) | {"state": "revoked", "remedy": register_again(name, place)}
    found["status"] = now
    if json_:
        as_json(found)
        return
    found.pop("status")
    held = found.pop("held")
    facts([(k, "no" if v is False else v) for k, v in found.items()])
    facts([("held", held and f"stopped by hand, until: oncue endpoint start {name}")])
    if isinstance(now, dict):
        written = when(now.pop("written_us", 0))
        if not now.pop("current", True):
            say(f"the agent that wrote this, last at {written}, does not run any more:", err=True)
        facts([(k, v) for k, v in now.items() if k not in found])


def _revoked(id: str) -> bool:
    """Whether the server says so, where one can be asked from here."""
    from oncue.client import Client

    try:
        with Client(patience=2) as client:
            return any(e.id == id and e.state == "revoked" for e in client.endpoints.list())
    except OncueError:
        return False
