"""`oncue up`: runs the server here and the local agent as a child process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from oncue.cli.local_server import answers, await_true, local_server, ready_text
from oncue.cli.start_wait import await_start
from oncue.config import Settings, load_settings, make_data_folder
from oncue.errors import Conflict, DiskFull, OncueError
from oncue.extras import need
from oncue.text.log_lines import log_to

START_S = 60.0
FULL_S = 3.0  # before looking whether it waits for space
REGISTERED_S = 10.0
HELD = "  its endpoint `local` was stopped by hand; to start it: oncue endpoint start local --detach"


@click.command()
@click.option(
    "--data", type=click.Path(file_okay=False), help="Folder for log, view, blobs and keys (default: ~/.oncue)."
)
@click.option("--host", help="Address to listen on (default: 127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the API and the web page (default: 8765); 0: any free port."
)
@click.option("--workers", type=click.IntRange(0), help="Workers of the local endpoint; 0: one per core (the default).")
@click.option("--log", "log_url", help="URL of the log (default: SQLite in the data folder).")
@click.option("--no-endpoint", is_flag=True, help="Start no endpoint on this machine.")
@click.option(
    "--endpoint-name", help="Name of the endpoint on this machine (default: local; if that is taken: local-HOST)."
)
@click.option(
    "--without-rules",
    is_flag=True,
    help="Start no rule and no trigger, to repair or remove them. Events are stored; rules test them at the next start.",
)
@click.option("--detach", is_flag=True, help="Run in the background; return when the server is ready.")
def up(
    data: str | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    log_url: str | None,
    no_endpoint: bool,
    endpoint_name: str | None,
    without_rules: bool,
    detach: bool,
) -> None:
    """Start a server and an endpoint on this machine.

    Runs until Ctrl-C, or with --detach until `oncue down`.

    \b
    Example:
      oncue up --port 8765 --workers 4
      oncue up --detach && oncue doctor
    """
    need("a server")
    flags = {"data": data, "host": host, "port": port, "workers": workers, "log": log_url}
    flags["without_rules"] = without_rules or None
    settings = load_settings(flags)
    folder = settings.data_path
    running = local_server(folder)
    if running is not None:
        raise Conflict(
            f"a server runs already in {folder}: {running['url']} (pid {running['pid']})",
            remedy="use it, or stop it with `oncue down`; a second server needs another --data",
        )
    if detach:
        _detach(
            folder,
            [a for a in sys.argv[1:] if a != "--detach"] if _own_argv() else _argv(flags, no_endpoint, endpoint_name),
        )
    else:
        _serve(settings, no_endpoint, endpoint_name)


def _serve(settings: Settings, no_endpoint: bool, endpoint_name: str | None) -> None:
    from oncue.cli.local_agent import LocalAgent
    from oncue.dispatcher.process import serve
    from oncue.endpoint.settings import is_marked_stopped

    log_to()
    agent = (
        None
        if no_endpoint
        else LocalAgent(settings.data_path, settings.workers, endpoint_name or "", settings.shared_log)
    )

    def ready(local: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a full disk, if it goes to a file
            click.echo(f"oncue is up at {local['url']} (pid {os.getpid()}), data in {settings.data_path}")
            click.echo("  run a function:  oncue invoke file.py:function --arg name=value")
            click.echo("  stop:            Ctrl-C, or `oncue down`")
            if agent is not None and is_marked_stopped(agent.folder):
                click.echo(HELD)
            sys.stdout.flush()
        if agent is not None:
            agent.start(local)

    try:
        serve(settings, ready)
    finally:
        if agent is not None:
            agent.stop()


def _own_argv() -> bool:
    """Return True if this process is `oncue up`, not a caller of the command."""
    return len(sys.argv) > 1 and sys.argv[1] == "up"


def _argv(flags: dict[str, Any], no_endpoint: bool, endpoint_name: str | None) -> list[str]:
    given = ["--without-rules"] if flags.get("without_rules") else []
    values = {name: value for name, value in flags.items() if value is not None and value is not True}
    given += [word for name, value in values.items() for word in (f"--{name}", str(value))]
    given += ["--endpoint-name", endpoint_name] if endpoint_name else []
    return ["up", *given, *(["--no-endpoint"] if no_endpoint else [])]


def _registered(data: Path, local: dict[str, Any]) -> bool:
    from oncue.cli.agent_process import registered_name

    name = registered_name(data / "endpoints" / "local")
    return bool(name) and answers(local["url"], f"/v1/endpoints/{name}", token=local["token"])


def _last_after(path: Path, start: int, phrase: str) -> str:
    """Return the text after `phrase` in the last line that has it.

    The search begins at byte `start` of the file.
    """
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return next((line.partition(phrase)[2] for line in reversed(lines) if phrase in line), "")


def _raise_if_full(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Raise DiskFull if the server waits for space. It goes on waiting."""
    from oncue.disk.space import free_bytes
    from oncue.dispatcher.folder import last_http_port
    from oncue.dispatcher.space_wait import ENOUGH_BYTES

    port = last_http_port(folder)
    if free_bytes(folder) < ENOUGH_BYTES and port and "is full" in ready_text(port):
        process.returncode = 0  # it runs on: no warning about a child that nobody waits for
        raise DiskFull(
            f"the disk of {folder} is full: the server (pid {process.pid}) waits for space",
            remedy="free some space there: it then starts by itself; to end it: kill its pid",
        )


def _detach(folder: Path, arguments: list[str]) -> None:
    """Start the server in a session of its own; return when it is ready.

    Raises OncueError if it ends, or has not gone on with its start for START_S.
    """
    from oncue.cli.agent_process import local_folder
    from oncue.endpoint.settings import is_marked_stopped

    make_data_folder(folder)
    path = folder / "server.log"
    with path.open("ab") as out:
        start = out.tell()
        process = subprocess.Popen(
            # -P: a file in the current folder must not shadow a module of the server.
            [sys.executable, "-P", "-m", "oncue", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    began = time.monotonic()

    def ready() -> bool:
        if process.poll() is not None:
            return True
        if time.monotonic() - began > FULL_S:
            _raise_if_full(folder, process)
        local = local_server(folder)
        return local is not None and local["pid"] == process.pid and answers(local["url"], "/health/ready")

    unregistered = ""  # why the endpoint is not registered
    done = await_start(ready, lambda: _last_after(path, start, "oncue.server: starting: "), START_S)
    if done and process.poll() is None and "--no-endpoint" not in arguments:
        # The endpoint is registered a moment later (on Kafka up to a second). Wait for it, so that
        # a command after this one can use it.
        local = local_server(folder) or {"url": "", "token": ""}
        if not await_true(lambda: _registered(folder, local), REGISTERED_S):
            unregistered = _last_after(path, start, "could not be registered: ") or f"not yet; see {path}"
    if process.poll() is None and not done:
        _raise_if_full(folder, process)
    if process.poll() is not None or not done:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        printed = path.read_bytes()[start:][-2000:].decode("utf-8", "replace").strip()
        raise OncueError(f"the server did not start:\n{printed}", remedy=f"its log is {path}")
    click.echo(f"oncue is up at {(local_server(folder) or {'url': '?'})['url']} (pid {process.pid}); its log is {path}")
    click.echo("  stop it: oncue down")
    if "--no-endpoint" not in arguments and is_marked_stopped(local_folder(folder)):
        click.echo(HELD)
    if unregistered:
        click.echo(f"  its endpoint is not registered yet, trying again: {unregistered}", err=True)
    process.returncode = 0  # it runs on: no warning about a child that nobody waits for
