"""An endpoint's folder: who the agent is and where it dials.

agent.json    Settings          agent.key    its CURVE keys, mode 600          lock    held while an agent runs
held          stopped by hand: it does not start by itself
journal       journal.py          functions/   blobs/    work/                   status.json    what it does now
servers.json  servers.py: the other servers that it may dial
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from pathlib import Path

import msgspec

from oncue.errors import Conflict, Invalid


class EndpointSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`agent.json`. `bridge_file` names a server's `local.json` (its `bridge` and `server_key` are read before each dial,
    so a restarted local server with another port is found); else `bridge` and `server_key` say where to dial."""

    id: str
    name: str
    bridge: str = ""  # tcp://host:port
    bridge_given: bool = False  # by hand: registering again leaves it
    server_key: str = ""  # CURVE, Z85
    bridge_file: str = ""
    workers: int = 0  # 0: one a core
    spool_bytes: int = 256 << 20
    grace_s: float = 5.0  # that running tasks get when the agent stops


def load(folder: Path) -> EndpointSettings:
    """Raises Invalid, naming the file and what is wrong with it."""
    path = folder / "agent.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=EndpointSettings)
    except FileNotFoundError:
        why = "there is no such file"
    except (OSError, msgspec.MsgspecError) as e:
        why = str(e)
    raise Invalid(f"{path}: {why}", remedy="register the endpoint: oncue endpoint register NAME")


def load_or_default(folder: Path, id: str, name: str) -> EndpointSettings:
    """Those in the folder, for this id and name; the defaults where there are none, or none that can be read: to register
    again is their remedy."""
    try:
        return msgspec.structs.replace(load(folder), id=id, name=name)
    except Invalid:
        return EndpointSettings(id=id, name=name)


def save(folder: Path, settings: EndpointSettings) -> None:
    """Make the folder (mode 700) with these settings."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / "agent.json.new"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")
    fresh.replace(folder / "agent.json")


def mark_stopped(folder: Path) -> None:
    """From now on nobody starts its agent by itself, until somebody has started it by hand."""
    (folder / "held").touch()


def is_marked_stopped(folder: Path) -> bool:
    return (folder / "held").exists()


def unmark_stopped(folder: Path) -> None:
    (folder / "held").unlink(missing_ok=True)


def register_again(name: str, folder: Path) -> str:
    """The remedy of a refused endpoint: the command as it stands."""
    return f"register the endpoint again: oncue endpoint register {shlex.quote(name)} --dir {shlex.quote(str(folder))}"


def resolve_server(settings: EndpointSettings) -> tuple[str, bytes]:
    """(address, server's key) to dial now. Raises Invalid when they cannot be found."""
    address, key = settings.bridge, settings.server_key
    if settings.bridge_file:
        try:
            found = json.loads(Path(settings.bridge_file).expanduser().read_text())
            address, key = found.get("bridge") or address, found.get("server_key") or key
        except (OSError, ValueError, AttributeError) as e:
            if not address:
                raise Invalid(
                    f"{settings.bridge_file}: {e}", remedy="start the server (oncue up), or register the endpoint again"
                ) from None
    if not address or not key:
        raise Invalid("the endpoint does not know its server", remedy="register it again: oncue endpoint register")
    return address, key.encode()


class AgentLock:
    """One agent a folder. Raises Conflict, naming the process that holds it. The kernel drops it when that dies."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Conflict(
                f"an agent runs in {folder} already" + (f", process {pid}" if pid else ""),
                remedy="stop it first (kill it), or give this one another folder",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._fd)
