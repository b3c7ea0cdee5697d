"""Folder of an endpoint on this machine, and what its agent has written there."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from oncue.cli import completers
from oncue.config import default_data
from oncue.errors import Invalid, OncueError

F = TypeVar("F", bound=Callable[..., Any])
LOG = "agent.log"  # of an agent that runs in the background
MOST_LOG_BYTES = 16 << 20  # before a start; then the file is renamed
LAST_BYTES = 16_384  # in which the last lines are searched

dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False),
    help="Folder of the endpoint (default: endpoints/NAME in the data folder).",
)


def name_argument(f: F) -> F:
    """Add the argument NAME; without it, the endpoint of `oncue up`."""
    return click.argument("name", default="local", shell_complete=completers.local_endpoints)(f)


def folder_of(folder: str | None, name: str) -> Path:
    """Return the endpoint's folder. Raises Invalid for a name that leads elsewhere."""
    if folder:
        return Path(folder).expanduser().absolute()
    if not name or "/" in name or name.startswith("."):
        raise Invalid(f"{name[:60]!r} is not an endpoint's name", remedy="letters, digits and . _ - ; a letter first")
    return default_data().absolute() / "endpoints" / name


def registered(folder: str | None, name: str, error: type[OncueError] = Invalid) -> Path:
    """Return the folder of an endpoint that was registered here.

    Raises `error`, which names the endpoints that there are.
    """
    place = folder_of(folder, name)
    if (place / "agent.json").exists():
        return place
    known = sorted(path.parent.name for path in default_data().glob("endpoints/*/agent.json"))
    near = difflib.get_close_matches(name, known, n=1)
    others = f"did you mean {near[0]}? " if near else f"here are: {', '.join(known)}. " if known else ""
    raise error(
        f"no agent can run in {place}: there is no agent.json, as `register` writes it",
        remedy=f"{others}To make a new one: oncue endpoint init {name}, or oncue endpoint register {name}",
    )


def read_status(place: Path) -> dict[str, Any] | None:
    """Return the agent's `status.json`; None if there is none."""
    try:
        content = msgspec.json.decode((place / "status.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return content if isinstance(content, dict) else None


def other_host(place: Path) -> str:
    """Return the host of the folder's agent if it is not this one, else ""."""
    from oncue.endpoint.folder_claim import read_claim

    claim = read_claim(place)
    return claim.host if claim is not None and claim.host != socket.gethostname() else ""


def last_lines(path: Path, count: int, since: int = 0) -> str:
    """Return the last lines of a log, of what was written behind `since` bytes."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(max(since, size - LAST_BYTES))
            lines = f.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def set_aside_large_log(place: Path) -> None:
    """Rename a large log, before an agent begins to append to it."""
    path = place / LOG
    if path.exists() and path.stat().st_size > MOST_LOG_BYTES:
        path.replace(place / f"{LOG}.old")
