"""`oncue endpoint start`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from oncue.cli.endpoint.folder import LOG, dir_option, last_lines, name_argument, other_host, read_status, registered
from oncue.cli.endpoint.folder import set_aside_large_log as set_aside
from oncue.cli.output import as_json, json_option, say
from oncue.errors import Conflict, Invalid, OncueError, Refused, Unreachable
from oncue.processes.secrecy import agent_environment

CONNECT_S = 15.0  # longest wait for an agent's first connection
REFUSED_S = 5.0  # an agent that was refused for so long is stopped
LOG_LINES = 10  # of an agent that does not connect


@click.command()
@name_argument
@dir_option
@click.option("--detach", is_flag=True, help="Run in the background; return when the server has seen the agent.")
@click.option("--wait", metavar="DURATION", help="With --detach: longest wait for the server (15s).")
@json_option
def start(name: str, folder: str | None, detach: bool, wait: str | None, json_: bool) -> None:
    """Start the agent of an endpoint.

    It runs until Ctrl-C, or with --detach until `oncue endpoint stop`. With --detach the command
    succeeds only when the server has seen the agent. If it has not, the exit code is 3, the last
    lines of the agent's log are shown, and the agent keeps trying.

    \b
    Example:
      oncue endpoint start polaris --detach
    """
    from oncue.cli.agent_process import agent_command, running_agent
    from oncue.cli.client import seconds
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.settings import load

    wait_s = seconds(wait)
    if json_ and not detach:
        raise click.UsageError("--json needs --detach: else the agent's log is the output")
    if wait_s is not None and not detach:
        raise Invalid("--wait needs --detach", remedy="add --detach: without it the agent runs here until Ctrl-C")
    place = registered(folder, name)
    load(place)
    load_options(place)  # raises here, not in the agent's log
    if pid := running_agent(place):
        where = f" on {host}" if (host := other_host(place)) else ""
        raise Conflict(
            f"the agent of {place} runs already (pid {pid}{where})",
            remedy=f"stop it{where}: oncue endpoint stop {name}",
        )
    if not detach:
        # The agent replaces this process, so that it gets the signals of a terminal or supervisor.
        sys.stdout.flush()
        os.execve(sys.executable, agent_command(place, by_hand=True), agent_environment(os.environ))
    tell_started(start_detached(place, name, CONNECT_S if wait_s is None else wait_s), json_)


def tell_started(started: dict[str, Any], json_: bool) -> None:
    if json_:
        as_json(started)
    else:
        say(f"the agent runs (pid {started['pid']}); its log is {started['log']}")


def start_detached(place: Path, name: str, wait_s: float = CONNECT_S) -> dict[str, Any]:
    """Start the agent in the background and wait until its server has seen it.

    Raises Refused (the agent was stopped), Unreachable (it goes on), OncueError (it has ended).
    """
    from oncue.cli.agent_process import start_agent, stop_child
    from oncue.endpoint.settings import register_again

    set_aside(place)
    path = place / LOG
    with path.open("ab") as out:
        began = out.tell()
        process = start_agent(
            place, by_hand=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    now = await_settled(place, process, wait_s)
    if process.poll() is not None:
        _raise_if_refused(place, process.pid, name)
        raise OncueError(f"the agent ended at once:\n{last_lines(path, LOG_LINES, began)}", remedy=f"its log is {path}")
    if now.get("why"):
        stop_child(process)
        raise Refused(f"{now['why']}; the agent was stopped", remedy=register_again(name, place))
    process.returncode = 0  # it runs on: no warning about a child that nobody waits for
    if now.get("state") != "connected":
        raise not_seen(name, process.pid, wait_s, last_lines(path, LOG_LINES, began))
    started = {"name": name, "dir": str(place), "pid": process.pid, "log": str(path)}
    return started | {"state": "connected", "server": now.get("server", "")}


def not_seen(name: str, pid: int, waited_s: float, lines: str) -> Unreachable:
    """Return the error for an agent that runs, but that no server has seen."""
    return Unreachable(
        f"the agent runs (pid {pid}), but no server has seen it in {waited_s:g} s"
        + (f". The last lines of its log:\n{lines}" if lines else ""),
        remedy=f"it keeps trying: is the server up, can this machine reach it? See `oncue endpoint status {name}`,"
        f" or end it: oncue endpoint stop {name}",
    )


def await_settled(place: Path, process: subprocess.Popen[bytes], wait_s: float) -> dict[str, Any]:
    """Wait until the agent is connected, has ended, or is refused for good.

    Return its status. Refused for good: for REFUSED_S, since a server that is starting refuses
    endpoints until it has read the registry.
    """
    from oncue.cli.local_server import await_true

    now: dict[str, Any] = {}
    refused_at = 0.0

    def settled() -> bool:
        nonlocal now, refused_at
        now = read_status(place) or {}
        if now.get("pid") != process.pid:
            now = {}
        refused_at = (refused_at or time.monotonic()) if now.get("why") else 0.0
        refused = refused_at and time.monotonic() - refused_at > REFUSED_S
        return process.poll() is not None or now.get("state") == "connected" or bool(refused)

    await_true(settled, wait_s)
    return now


def _raise_if_refused(place: Path, pid: int, name: str) -> None:
    """Raise Refused if this agent has ended because the server refused it."""
    from oncue.endpoint.settings import register_again

    now = read_status(place) or {}
    if now.get("pid") == pid and now.get("state") == "refused":
        raise Refused(f"{now['why']}; the agent has ended", remedy=now.get("remedy") or register_again(name, place))
