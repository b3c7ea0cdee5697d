"""`oncue endpoint`: on the machine of an agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click

from oncue.cli.output import as_json, facts, json_option, say
from oncue.config import default_data
from oncue.errors import Conflict, Invalid, NotFound, OncueError

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

    \b
    Example:
      ONCUE_URL=https://oncue.example ONCUE_TOKEN=… oncue endpoint register polaris
    """
    from oncue.cli.connect import connected, seconds
    from oncue.curve import load_or_make_keys
    from oncue.endpoint.settings import Settings, save
    from oncue.resources import EndpointRequest

    wrong = [label for label in labels if "=" not in label]
    if wrong:
        raise Invalid(f"--label {wrong[0]!r} is not name=value", remedy="for example --label site=alcf")
    place = _folder(folder, name)
    request = EndpointRequest(
        name=name,
        public_key=load_or_make_keys(place / "agent.key").public.decode(),
        lost_after_ms=round((seconds(lost_after) or 0) * 1000),
        labels=dict(label.split("=", 1) for label in labels),
    )
    with connected() as client:
        found = client.endpoints.register(request)
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
@click.argument("name", default="local")
@_dir
@click.option("--detach", is_flag=True, help="Go on in the background.")
def start(name: str, folder: str | None, detach: bool) -> None:
    """Run the agent, here or in the background.

    \b
    Example:
      oncue endpoint start polaris --detach
    """
    from oncue.cli.local_agent import agent_command, running_agent, start_agent
    from oncue.cli.local_server import await_true
    from oncue.endpoint.settings import load

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
        process = start_agent(place, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    await_true(lambda: process.poll() is not None or running_agent(place) == process.pid, 10)
    if process.poll() is not None:
        said = path.read_bytes()[-1000:].decode("utf-8", "replace").strip()
        raise OncueError(f"the agent ended at once:\n{said}", remedy=f"all that it said is in {path}")
    say(f"the agent runs (pid {process.pid}); it writes to {path}")
    process.returncode = 0  # it goes on; nothing here waits for it


@endpoint.command()
@click.argument("name", default="local")
@_dir
def stop(name: str, folder: str | None) -> None:
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
    say(f"the agent (pid {pid}) has ended")


@endpoint.command()
@click.argument("name", default="local")
@_dir
@json_option
def status(name: str, folder: str | None, json_: bool) -> None:
    """What the agent on this machine does now.

    \b
    Example:
      oncue endpoint status polaris
    """
    import msgspec

    from oncue.cli.local_agent import running_agent
    from oncue.endpoint.settings import load

    place = _folder(folder, name)
    settings = load(place)
    pid = running_agent(place)
    found = {"name": settings.name, "id": settings.id, "dir": str(place), "running": bool(pid), "pid": pid}
    try:
        found["status"] = msgspec.json.decode((place / "status.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        found["status"] = None
    if json_:
        as_json(found)
        return
    now = found.pop("status")
    facts([(k, "no" if v is False else v) for k, v in found.items()])
    if isinstance(now, dict):
        facts([(k, v) for k, v in now.items() if k not in found])
