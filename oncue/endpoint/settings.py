"""An endpoint's folder: identity of the agent, addresses of its server, lock.

agent.json    EndpointSettings            agent.key    CURVE keys, mode 600
lock          held while an agent runs    held         stopped by hand: it does not start by itself
journal       agent/journal.py            functions/   blobs/    work/
servers.json  agent/servers.py            status.json  present state
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import msgspec

from oncue.disk.durable_files import replace_file
from oncue.endpoint.pool.limits import WorkerLimits
from oncue.errors import Conflict, Invalid
from oncue.processes.file_lock import FileLock
from oncue.quantities import size_bytes


class EndpointSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `agent.json`.

    `bridge_file` names a server's `local.json`. Its `bridge` and `server_key` are read before each
    dial, so that a restarted local server is found at its new port. Without it, `bridge` and
    `server_key` are used.
    """

    id: str
    name: str
    bridge: str = ""  # tcp://host:port
    bridge_given: bool = False  # set by hand: registering again keeps it
    server_key: str = ""  # CURVE, Z85
    bridge_file: str = ""
    server_blobs: str = ""  # the server's folder of blobs, if it is on this machine and of this account
    workers: int = 0  # 0: one per core
    spool_bytes: int = 256 << 20
    grace_s: float = 5.0  # for running tasks when the agent stops
    #: Globs of variables that workers get although their names look like secrets (HF_TOKEN).
    pass_env: tuple[str, ...] = ()
    #: A worker is replaced after so many tasks, or if it holds more memory ("2GB"); 0: never.
    max_tasks: int = 0
    max_memory: int | str = 0
    threads: int = 0  # of BLAS, OpenMP and the like in each worker; 0: cores / workers
    debuggable: bool = False  # debuggers may attach, and core dumps are written: tasks see its memory

    def server_blobs_here(self) -> Path | None:
        """Return the server's folder of blobs; None if it is not here."""
        path = Path(self.server_blobs)
        return path if self.server_blobs and path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK) else None

    def limits(self) -> WorkerLimits:
        """Return the limits of each worker. Raises Invalid."""
        try:
            memory = size_bytes(self.max_memory)
        except ValueError as e:
            raise Invalid(f"max_memory: {e}", remedy='for example "max_memory": "2GB"') from None
        for name in ("max_tasks", "threads"):
            if getattr(self, name) < 0:
                raise Invalid(f"{name} is negative: {getattr(self, name)}", remedy="0 means no limit")
        return WorkerLimits(self.threads, self.max_tasks, memory)


def load(folder: Path) -> EndpointSettings:
    """Read the settings. Raises Invalid, naming the file and the fault."""
    path = folder / "agent.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=EndpointSettings)
    except FileNotFoundError:
        why = "there is no such file"
    except (OSError, msgspec.MsgspecError) as e:
        why = str(e)
    raise Invalid(f"{path}: {why}", remedy="register the endpoint: oncue endpoint register NAME")


def load_or_default(folder: Path, id: str, name: str) -> EndpointSettings:
    """Return the folder's settings with this id and name, or defaults.

    Unreadable settings count as none: registering again is their remedy.
    """
    try:
        return msgspec.structs.replace(load(folder), id=id, name=name)
    except Invalid:
        return EndpointSettings(id=id, name=name)


def save(folder: Path, settings: EndpointSettings) -> None:
    """Write the settings; make the folder (mode 700) if needed."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(folder / "agent.json", msgspec.json.format(msgspec.json.encode(settings)) + b"\n")


def mark_stopped(folder: Path) -> None:
    """Keep the agent from starting by itself until it is started by hand."""
    (folder / "held").touch()


def is_marked_stopped(folder: Path) -> bool:
    """Return True if the agent was stopped by hand."""
    return (folder / "held").exists()


def unmark_stopped(folder: Path) -> None:
    """Let the agent start by itself again."""
    (folder / "held").unlink(missing_ok=True)


def register_again(name: str, folder: Path) -> str:
    """Return the remedy of a refused endpoint: the command to type."""
    return f"register the endpoint again: oncue endpoint register {shlex.quote(name)} --dir {shlex.quote(str(folder))}"


def resolve_server(settings: EndpointSettings) -> tuple[str, bytes]:
    """Return (address, server's key) to dial now.

    Raises Invalid if they cannot be found.
    """
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


def lock_folder(folder: Path) -> FileLock:
    """Lock the folder for one agent. Raises Conflict, naming who holds it."""

    def refusal(pid: int) -> Conflict:
        return Conflict(
            f"an agent runs in {folder} already" + (f", process {pid}" if pid else ""),
            remedy="stop it first (kill it), or give this one another folder",
        )

    return FileLock(folder / "lock", refusal)
