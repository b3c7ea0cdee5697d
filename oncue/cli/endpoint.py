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

from oncue.cli import completing
from oncue.cli.output import as_json, facts, json_option, say
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
@click.option("--workers", type=click.IntRange(0), default=0, help="0: one a core.")
@click.option(
    "--lost-after", metavar="DURATION", help="Away for longer than this, its running tasks are lost (default: never)."
)
@click.option("--label", "labels", multiple=True, metavar="K=V")
@click.option("--bridge", default="", metavar="tcp://HOST:PORT", help="Where to dial (default: as the server says).")
@json_option
def register(
    name: str,
    folder: str | None,
    workers: int,
    lost_after: str | None,
    labels: tuple[str, ...],
    bridge: str,
    json_: bool,
) -> None:
    """Make this endpoint's keys and tell the server (ONCUE_URL, ONCUE_TOKEN). The secret key stays here.
    Where the endpoint was revoked, it gets new keys.

    \b
    Example:
      ONCUE_URL=https://oncue.example ONCUE_TOKEN=… oncue endpoint register polaris
    """
    from oncue.cli.connect import connected, seconds
    from oncue.cli.enrolment import enrol
    from oncue.endpoint.settings import Settings, save

    wrong = [label for label in labels if "=" not in label]
    if wrong:
        raise Invalid(f"--label {wrong[0]!r} is not name=value", remedy="for example --label site=alcf")
    place = _folder(folder, name)
    lost_after_ms = round((seconds(lost_after) or 0) * 1000)
    pairs = dict(label.split("=", 1) for label in labels)
    with connected() as client:
        found = enrol(client, place, name, lost_after_ms=lost_after_ms, labels=pairs)
        bridge = bridge or _reachable(found.bridge, client.http.target()[0])
    save(
        place,
        Settings(id=found.id, name=found.name, server_key=found.server_key, bridge=bridge, workers=workers),
    )
    if json_:
        as_json({"id": found.id, "name": found.name, "dir": str(place), "bridge": bridge})
    else:
        say(f"{found.name} is registered ({found.id}); its agent will dial {bridge}")
        say(f"  start it: oncue endpoint start {name}" + (f" --dir {place}" if folder else ""))


@endpoint.command()
@click.argument("name", default="local", shell_complete=completing.local_endpoints)
@_dir
@click.option("--detach", is_flag=True, help="Go on in the background.")
def start(name: str, folder: str | None, detach: bool) -> None:
    """Run the agent, here or in the background.

    \b
    Example:
      oncue endpoint start polaris --detach
    """
    from oncue.cli.local_agent import agent_command, end, running_agent, start_agent
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
        os.execv(sys.executable, agent_command(place))
    path = place / "agent.log"
    with path.open("ab") as out:
        began = out.tell()
        process = start_agent(place, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
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
        said = path.read_bytes()[began:][-1000:].decode("utf-8", "replace").strip()
        raise OncueError(f"the agent ended at once:\n{said}", remedy=f"all that it said is in {path}")
    if now.get("why"):
        end(process.pid, process)
        raise Refused(f"{now['why']}; the agent was stopped", remedy=register_again(name, place))
    say(f"the agent runs (pid {process.pid}); it writes to {path}")
    if now.get("state") != "connected":
        say("  it has not reached its server yet, and goes on trying: is the server up?", err=True)
    process.returncode = 0  # it goes on; nothing here waits for it


def _status(place: Path) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode((place / "status.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return found if isinstance(found, dict) else None


@endpoint.command()
@click.argument("name", default="local", shell_complete=completing.local_endpoints)
@_dir
@json_option
def stop(name: str, folder: str | None, json_: bool) -> None:
    """Stop the agent: running tasks get a grace, the rest stays in its journal for the next start.

    \b
    Example:
      oncue endpoint stop polaris
    """
    from oncue.cli.local_agent import end, running_agent

    place = _folder(folder, name)
    pid = running_agent(place)
    if not pid:
        raise NotFound(f"no agent runs in {place}", remedy="`oncue endpoint status` shows what is there")
    end(pid, None)
    as_json({"name": name, "dir": str(place), "pid": pid}) if json_ else say(f"the agent (pid {pid}) has ended")


@endpoint.command()
@click.argument("name", default="local", shell_complete=completing.local_endpoints)
@_dir
@json_option
def status(name: str, folder: str | None, json_: bool) -> None:
    """What the agent on this machine does now.

    \b
    Example:
      oncue endpoint status polaris
    """
    from oncue.cli.local_agent import running_agent
    from oncue.endpoint.settings import load

    place = _folder(folder, name)
    settings = load(place)
    pid = running_agent(place)
    found = {"name": settings.name, "id": settings.id, "dir": str(place), "running": bool(pid), "pid": pid}
    found["status"] = _status(place)
    if json_:
        as_json(found)
        return
    now = found.pop("status")
    facts([(k, "no" if v is False else v) for k, v in found.items()])
    if isinstance(now, dict):
        facts([(k, v) for k, v in now.items() if k not in found])
