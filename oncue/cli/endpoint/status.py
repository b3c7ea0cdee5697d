"""`oncue endpoint status`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from oncue.cli.endpoint.folder import dir_option, name_argument, other_host, read_status, registered
from oncue.cli.output import as_json, facts, json_option, say, table, when
from oncue.errors import OncueError

SHOWN_APART = ("blocks",)  # of status.json, as a table


@click.command()
@name_argument
@dir_option
@json_option
def status(name: str, folder: str | None, json_: bool) -> None:
    """Show the state of an endpoint's agent on this machine.

    \b
    Example:
      oncue endpoint status polaris
    """
    from oncue.endpoint.settings import is_marked_stopped, load, register_again

    place = registered(folder, name)
    settings = load(place)
    pid, elsewhere = _agent(place)
    answer = {"name": settings.name, "id": settings.id, "dir": str(place), "running": bool(pid), "pid": pid}
    answer["held"] = is_marked_stopped(place)
    answer["options"] = _options_problem(place)
    now = read_status(place)
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
    _show(name, answer, elsewhere)


def _show(name: str, answer: dict[str, Any], elsewhere: str) -> None:
    now, held, wrong = answer.pop("status"), answer.pop("held"), answer.pop("options")
    known = [(k, "no" if v is False else v) for k, v in answer.items()]
    known += [("held", held and f"stopped by hand; to start it: oncue endpoint start {name}")]
    known += [("endpoint.yaml", wrong), ("where", elsewhere)]
    if not isinstance(now, dict):
        facts(known)
        return
    written, current = when(now.pop("written_us", 0)), now.pop("current", True)
    reported = [(k, v) for k, v in now.items() if k not in answer and k not in SHOWN_APART]
    if current:
        facts(known + reported)
    else:
        facts(known)
        say(f"the agent that wrote this status at {written} does not run any more:", err=True)
        facts(reported)
    blocks = now.get("blocks")
    if isinstance(blocks, list) and blocks:
        show_blocks([b for b in blocks if isinstance(b, dict)])


def show_blocks(blocks: list[dict[str, Any]]) -> None:
    """Print a table of blocks, and below it what the jobs of failed ones wrote."""
    say()
    head = ("BLOCK", "JOB", "STATE", "NODES", "WORKERS", "BUSY", "SINCE", "WHY")
    table(head, map(_block_row, blocks), "no blocks")
    facts([(f"stderr of {b.get('job') or b.get('id')}", str(b.get("stderr") or "")) for b in blocks])


def _block_row(b: Mapping[str, Any]) -> tuple[Any, ...]:
    since = str(b.get("since", ""))[:19]  # without the zone
    numbers = (b.get("nodes", ""), b.get("workers", ""), b.get("busy", ""))
    return (
        b.get("id", ""),
        b.get("job", ""),
        b.get("state", ""),
        *numbers,
        since,
        _why(b),
    )


def _why(b: Mapping[str, Any]) -> str:
    """Return the reason of a block's state, without what its row says already."""
    words = str(b.get("why") or b.get("reason") or "").removeprefix(f"job {b.get('job')}")
    return "" if words.strip() == b.get("state") else words.removeprefix(",").strip()


def _agent(place: Path) -> tuple[int, str]:
    """Return the pid of the running agent, and where it is if it cannot be seen."""
    from oncue.cli.agent_process import running_agent
    from oncue.processes.lock_holder import lock_holder

    pid = running_agent(place)
    if not pid:
        return 0, ""
    try:
        holder = lock_holder(place / "lock")
    except OncueError:
        return pid, other_host(place) or "in another container, or on another machine that shares this folder"
    if holder is not None:
        holder.__exit__()
    return pid, ""


def _options_problem(place: Path) -> str:
    """Return the faults of `endpoint.yaml`, with which the agent would not start."""
    from oncue.endpoint.options.file import load_options

    try:
        load_options(place)
    except OncueError as e:
        return str(e)
    return ""


def _revoked(id: str) -> bool:
    """Return True if a server can be reached and lists this endpoint as revoked."""
    from oncue.client import Client

    try:
        with Client(patience=2) as client:
            return any(e.id == id and e.state == "revoked" for e in client.endpoints.list())
    except OncueError:
        return False
