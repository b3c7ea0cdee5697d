"""`oncue endpoint doctor`: checks an endpoint step by step."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from oncue.cli.endpoint.configure import NEEDED
from oncue.cli.endpoint.folder import dir_option, folder_of, name_argument, read_status
from oncue.cli.output import as_json, json_option, safe, say
from oncue.errors import OncueError
from oncue.log.finding import Finding

CONNECT_S = 5.0
WAIT_S = 600.0  # for the probe job


@click.command()
@name_argument
@dir_option
@click.option("--wait", metavar="DURATION", default="10m", show_default=True, help="Longest wait for the probe job.")
@click.option("--no-job", is_flag=True, help="Submit no probe job.")
@json_option
def doctor(name: str, folder: str | None, wait: str, no_job: bool, json_: bool) -> None:
    """Check an endpoint, on a batch scheduler with one probe job.

    The job runs for a second on one node. Its report says whether the queue, the node, the network
    path back, Python and the packages are right. Exit code 1 if there is a fault.

    \b
    Example:
      oncue endpoint doctor polaris
    """
    from oncue.cli.client import seconds

    examine(folder_of(folder, name), seconds(wait) or 0.0, no_job, json_)


def examine(place: Path, wait_s: float, no_job: bool, json_: bool) -> None:
    """Print the findings as they come. Exits with 1 if there is a fault."""
    findings = []
    for finding in _findings(place, wait_s, no_job):
        findings.append(finding)
        if not json_:
            _show(finding)
    if json_:
        as_json(findings)
    if not all(f.ok for f in findings):
        raise SystemExit(1)


def _show(f: Finding) -> None:
    mark = click.style("ok   ", fg="green") if f.ok else click.style("WRONG", fg="red")
    click.echo(f"{mark} {safe(f.check)}: {safe(f.found, lines=True)}")
    if f.remedy and not f.ok:
        click.echo(f"      → {safe(f.remedy)}")


def _findings(place: Path, wait_s: float, no_job: bool) -> Iterator[Finding]:
    """Yield the checks one by one; a fault that the next ones need ends them."""
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.options.providers import kind_of
    from oncue.endpoint.settings import load

    try:
        options = load_options(place)
        settings = load(place)
    except OncueError as e:
        yield Finding("settings", False, str(e.message), e.remedy)
        return
    kind = kind_of(options.provider)
    yield Finding("settings", True, f"{settings.name}, {kind}, in {place}")
    yield _server(settings)
    yield _agent(place, settings.name)
    if kind == "local":
        return
    missing = [command for command in NEEDED.get(kind, ()) if shutil.which(command) is None]
    if kind in NEEDED:
        found = f"not on PATH: {', '.join(missing)}" if missing else ", ".join(NEEDED[kind])
        yield Finding("commands", not missing, found, "load the scheduler's module, or extend PATH")
    if not missing and not no_job:
        yield from _probe(place, settings.id, options, wait_s)


def _server(settings: Any) -> Finding:
    """Check that the server's bridge answers at its address."""
    from oncue.endpoint.settings import resolve_server

    try:
        address, _ = resolve_server(settings)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OncueError as e:
        return Finding("server", False, e.message, e.remedy)
    except (OSError, ValueError) as e:
        return Finding("server", False, f"{address} does not answer: {e}", "is it up, and may this machine reach it?")
    return Finding("server", True, f"{address} answers")


def _agent(place: Path, name: str) -> Finding:
    from oncue.cli.agent_process import running_agent
    from oncue.cli.local_server import await_true

    pid = running_agent(place)
    if not pid:
        return Finding("agent", True, f"does not run; to start it: oncue endpoint start {name} --detach")

    def state() -> str:
        now = read_status(place) or {}
        return str(now.get("state", "unknown")) if now.get("pid") == pid else "starting"

    ok = await_true(lambda: state() in ("connected", "draining"), CONNECT_S)
    return Finding("agent", ok, f"{state()} (pid {pid})", f"see its log: oncue endpoint logs {name}")


def _probe(place: Path, endpoint: str, options: Any, wait_s: float) -> Iterator[Finding]:
    from oncue.endpoint.probe_job import ProbeJob
    from oncue.endpoint.providers.job_catalog import job_provider

    try:
        probe = ProbeJob(job_provider(options.provider, place), place, endpoint, options)
    except (OncueError, OSError) as e:
        yield Finding("submit", False, str(e), getattr(e, "remedy", "") or "correct `provider:` in endpoint.yaml")
        return
    yield Finding("submit", True, f"job {probe.job}")
    try:
        with probe:
            result = probe.wait(wait_s, lambda words: say(f"      job {probe.job}: {words}", err=True))
    except (OncueError, OSError) as e:
        yield Finding("queue", False, str(e), "is the scheduler up?")
        return
    yield from _explain(result, probe.addresses, place)


def _explain(result: Any, addresses: list[str], place: Path) -> Iterator[Finding]:
    """Yield what the probe found: queue, node, network, Python, packages, folder."""
    from oncue.endpoint.providers.jobs import JobState

    report, status, waited = result.report, result.status, f"{result.waited_s:.0f} s"
    if report is None:
        if status is None or status.state is JobState.PENDING:
            found = f"still waits after {waited}: {status.reason if status else 'not listed'}"
            yield Finding(
                "queue", False, found, "another queue or account, fewer nodes, less walltime; or --wait longer"
            )
            return
        yield Finding("queue", True, f"the job has started within {waited}")
        where = ", ".join(status.nodes) or "its node"
        told = f": exit {status.exit} {status.reason}\n{status.stderr_tail}".rstrip() if status.exit is not None else ""
        remedy = f"is {sys.executable} there, and can the node reach one of {', '.join(addresses)}?"
        yield Finding("node", False, f"no report from {where}{told}", remedy)
        return
    yield Finding("queue", True, f"the job has run within {waited}")
    yield Finding("node", True, report.host)
    yield Finding("network", True, f"{report.address} is reached from there")
    same = report.python.split(".")[:2] == platform.python_version().split(".")[:2]
    found = f"{report.python} at {report.executable}" + ("" if same else f"; here {platform.python_version()}")
    yield Finding("python", same, found, "use the same minor version: set it up in provider.worker_init")
    missing = "; ".join(f"{name} ({why})" for name, why in report.missing.items())
    there = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    found = f"missing: {missing}" if missing else there
    yield Finding("packages", not missing, found, "load the environment in provider.worker_init")
    shared = "the endpoint's folder is there" if report.folder else "the endpoint's folder is not there: code travels"
    yield Finding("folder", True, f"{shared} ({os.fspath(place)})")
