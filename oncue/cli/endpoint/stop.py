"""`oncue endpoint stop` and `restart`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import msgspec

from oncue.cli.endpoint.folder import dir_option, folder_of, name_argument, read_status, registered
from oncue.cli.endpoint.start import CONNECT_S, not_seen, start_detached, tell_started
from oncue.cli.output import as_json, json_option, number_of, say
from oncue.errors import Invalid, NotFound, OncueError

MARGIN_S = 5.0  # behind the grace of running tasks
JOBS_S = 90.0  # in which nodes hand back their tasks, and the scheduler has ended all jobs
WORKERS_S = 5.0  # in which workers end behind their agent
TELL_S = 10.0  # between two lines on how a drain goes


class Stopped(msgspec.Struct, frozen=True):
    """End of an agent."""

    name: str
    dir: str
    pid: int  # 0: none ran
    killed: bool
    held: bool  # `oncue up` does not restart it


@click.command()
@name_argument
@dir_option
@click.option("--drain", is_flag=True, help="Let running tasks end first, however long they take.")
@click.option("--cancel", is_flag=True, help="End running tasks at once.")
@click.option("--timeout", metavar="DURATION", help="With --drain: longest wait; the agent goes on draining.")
@json_option
def stop(name: str, folder: str | None, drain: bool, cancel: bool, timeout: str | None, json_: bool) -> None:
    """Stop the agent of an endpoint, with its workers and batch jobs.

    Running tasks get a few seconds to end (`grace`); waiting tasks stay in the journal for the next
    start. The endpoint of `oncue up` stays stopped until `oncue endpoint start`.

    \b
    Example:
      oncue endpoint stop polaris --drain
    """
    from oncue.cli.client import seconds
    from oncue.endpoint.control_files import StopMode

    if drain and cancel:
        raise Invalid("--drain and --cancel exclude each other", remedy="give one of them")
    if timeout is not None and not drain:
        raise Invalid("--timeout needs --drain", remedy="without --drain the agent ends in seconds")
    place = folder_of(folder, name)
    mode = StopMode.DRAIN if drain else StopMode.CANCEL if cancel else StopMode.GRACE
    stopped, how = stop_here(place, name, mode, seconds(timeout))
    if json_:
        as_json(stopped)
        return
    say(f"the agent (pid {stopped.pid}) {how}" if stopped.pid else "no agent runs")
    if stopped.held:
        say(f"  `oncue up` does not restart it: it stays stopped until `oncue endpoint start {name}`")


def stop_here(place: Path, name: str, mode: Any, limit_s: float | None = None) -> tuple[Stopped, str]:
    """Stop the agent; return facts and words. Raises NotFound, OncueError."""
    from oncue.cli.agent_process import ENDED, running_agent
    from oncue.cli.endpoint.service import stop_unit, unit_of
    from oncue.endpoint.control_files import KEEP_BLOCKS
    from oncue.endpoint.settings import load, mark_stopped

    pid = running_agent(place)
    supervised = bool(pid or (place / "agent.json").exists()) and bool(load(place).bridge_file)
    if supervised:
        mark_stopped(place)  # before the agent ends: `oncue up` would restart it
        pid = running_agent(place)
    if not pid and not supervised:
        registered(str(place), name, NotFound)
        raise NotFound(f"no agent runs in {place}", remedy=f"see `oncue endpoint status {name}`")
    how = ""
    (place / KEEP_BLOCKS).unlink(missing_ok=True)  # of a restart that was interrupted
    if pid:
        unit = unit_of(pid)
        pid, how = end_agent(place, name, mode, limit_s)
        if unit:
            stop_unit(unit)
    return Stopped(name, str(place), pid, how == "KILL", supervised), ENDED[how]


def end_agent(place: Path, name: str, mode: Any, limit_s: float | None = None) -> tuple[int, str]:
    """End the agent and its workers: SIGTERM, later SIGKILL.

    Raises OncueError if it goes on.
    """
    from oncue.cli.agent_process import stop_agent
    from oncue.endpoint.control_files import KEEP_BLOCKS, StopMode, request_stop

    workers, kept = _workers_of(place), (place / KEEP_BLOCKS).exists()
    request_stop(place, mode)
    if mode is StopMode.DRAIN:
        pid, how = _drain(place, name, limit_s)
    else:
        pid, how = stop_agent(place, _patience_s(place, mode))
    if pid and not how:
        raise OncueError(
            f"the agent (pid {pid}) has not ended, not even by SIGKILL",
            remedy="it waits for its disk or a file server; it ends when that answers",
        )
    _end_workers(workers)
    if not kept and (jobs := _jobs_left(place)):
        raise OncueError(
            f"the agent has ended, but these jobs may be left: {', '.join(jobs)}",
            remedy=f"end them by the scheduler's command, or start the endpoint: it takes them over. Its log: "
            f"oncue endpoint logs {name}",
        )
    return pid, how


def _jobs_left(place: Path) -> list[str]:
    """Return the jobs of blocks that had not ended when the agent ended."""
    blocks = (read_status(place) or {}).get("blocks") or []
    live = [b for b in blocks if isinstance(b, dict) and b.get("state") != "ended"]
    return [str(b.get("job") or f"block {b.get('id')}") for b in live]


def _patience_s(place: Path, mode: Any) -> float:
    """Return how long the agent may take to end by itself."""
    from oncue.cli.agent_process import GRACE_S
    from oncue.endpoint.control_files import StopMode
    from oncue.endpoint.options.apply import effective
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.options.providers import kind_of
    from oncue.endpoint.settings import load

    try:
        options = load_options(place)
        grace_s = 0.0 if mode is StopMode.CANCEL else effective(load(place), options).grace_s
        jobs_s = 0.0 if kind_of(options.provider) == "local" else JOBS_S
    except OncueError:  # the file was changed since the agent read it
        grace_s, jobs_s = 0.0, JOBS_S
    return max(GRACE_S, grace_s + MARGIN_S) + jobs_s


def _drain(place: Path, name: str, limit_s: float | None) -> tuple[int, str]:
    """Signal the agent and wait until its tasks have ended; return (pid, how)."""
    import signal

    from oncue.processes.lock_holder import lock_holder

    holder = lock_holder(place / "lock")
    if holder is None:
        return 0, ""
    began = told = time.monotonic()
    with holder:
        holder.send(signal.SIGTERM)
        holder.send(signal.SIGCONT)
        while not holder.await_end(0.5):
            now = time.monotonic()
            busy = int((read_status(place) or {}).get("busy") or 0)
            if limit_s is not None and now - began > limit_s:
                raise OncueError(
                    f"the agent (pid {holder.pid}) still drains: {number_of(busy, 'worker')} busy",
                    remedy=f"it ends when they are done; to end it now: oncue endpoint stop {name} --cancel",
                )
            if told == began or now - told > TELL_S:
                told = now
                say(f"draining: {number_of(busy, 'worker')} busy (Ctrl-C: it goes on draining)", err=True)
        return holder.pid, "TERM"


def _workers_of(place: Path) -> list[Any]:
    """Return the worker processes of the agent that runs here."""
    import psutil

    from oncue.cli.agent_process import running_agent

    try:
        children = psutil.Process(running_agent(place)).children(recursive=True)
        return [p for p in children if "oncue.endpoint.worker" in p.cmdline()]
    except (psutil.Error, ValueError):
        return []


def _end_workers(workers: list[Any]) -> None:
    """Wait until workers have ended behind their agent; kill those that have not."""
    import contextlib

    import psutil

    _, alive = psutil.wait_procs(workers, WORKERS_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil compares start times: never another process
            process.kill()
    psutil.wait_procs(alive, WORKERS_S)


@click.command()
@name_argument
@dir_option
@click.option("--drain", is_flag=True, help="Let running tasks end first, however long they take.")
@json_option
def restart(name: str, folder: str | None, drain: bool, json_: bool) -> None:
    """Stop the agent and start it in the background, with the present settings.

    Batch jobs go on; the new agent takes them over. It succeeds when the server has seen the new
    agent. If no agent runs, it is started.

    \b
    Example:
      oncue endpoint restart polaris
    """
    from oncue.cli.agent_process import running_agent
    from oncue.cli.endpoint.service import restart_unit, unit_of
    from oncue.endpoint.control_files import KEEP_BLOCKS, StopMode
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.settings import load

    place = registered(folder, name)
    settings = load(place)
    load_options(place)  # raises before anything is stopped
    pid = running_agent(place)
    unit = unit_of(pid) if pid else ""
    if pid:
        (place / KEEP_BLOCKS).touch()
    if pid and unit:
        restart_unit(unit)
        started = _await_other(place, name, pid)
    else:
        if pid:
            end_agent(place, name, StopMode.DRAIN if drain else StopMode.GRACE)
        supervised = bool(pid and settings.bridge_file and _is_up())
        started = _await_other(place, name, pid) if supervised else start_detached(place, name)
    tell_started(started, json_)


def _is_up() -> bool:
    """Return True if a server runs here: it restarts its endpoint's agent."""
    from oncue.cli.local_server import local_server
    from oncue.config import default_data

    return local_server(default_data()) is not None


def _await_other(place: Path, name: str, former: int) -> dict[str, Any]:
    """Wait until another agent than `former` is connected, which somebody else starts."""
    from oncue.cli.agent_process import running_agent
    from oncue.cli.local_server import await_true

    now: dict[str, Any] = {}

    def connected() -> bool:
        nonlocal now
        now = read_status(place) or {}
        pid = running_agent(place)
        return pid not in (0, former) and now.get("pid") == pid and now.get("state") == "connected"

    if not await_true(connected, 2 * CONNECT_S):
        raise not_seen(name, running_agent(place), 2 * CONNECT_S, "")
    started = {"name": name, "dir": str(place), "pid": now["pid"], "log": "that of the service"}
    return started | {"state": "connected", "server": now.get("server", "")}
