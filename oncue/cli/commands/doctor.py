"""`oncue doctor`: checks that report ok, or the fault and its remedy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from oncue.cli import client_checks, storage_checks
from oncue.cli.output import as_json, json_option, safe
from oncue.cli.rule_state import unevaluated_text
from oncue.config import Settings, load_settings
from oncue.errors import OncueError
from oncue.extras import SERVER, TELLING, missing, need, pip_install
from oncue.log import Finding, Topic, examine_log
from oncue.log.finding import SKEW_S
from oncue.protocol.api import EndpointInfo, Health, RuleInfo, TriggerInfo

if TYPE_CHECKING:
    from oncue.client import Client

LIBRARIES = ("msgspec", "cloudpickle", "pyzmq", "psutil", "click", "rich", "aiohttp", "PyYAML")

Check = Callable[[], Iterator[Finding]]


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="Data folder to check (default: ~/.oncue).")
@click.option("--log", "log_url", help="URL of the log to check (default: the setting `log`).")
@click.option("--endpoint", metavar="NAME", help="Check this endpoint instead, as `oncue endpoint doctor` does.")
@click.option("--deep", is_flag=True, help="Read the whole embedded log, however large.")
@json_option
def doctor(data: str | None, log_url: str | None, endpoint: str | None, deep: bool, json_: bool) -> None:
    """Check this machine, the log and the server.

    On a machine that only uses a server: its URL, your token, clocks, versions, your endpoints.
    Prints a remedy for each fault. Exit code 1 if there is a fault.

    \b
    Example:
      oncue doctor
      oncue doctor --log kafka://broker1:9092,broker2:9092
    """
    if endpoint is not None:
        from oncue.cli.endpoint.doctor import WAIT_S, examine
        from oncue.cli.endpoint.folder import folder_of

        examine(folder_of(None, endpoint), WAIT_S, False, json_)
        return
    settings = load_settings({"data": data, "log": log_url})
    folder = settings.data_path
    serves = can_serve(folder)
    only_endpoints = has_only_endpoints(folder)
    checks: list[tuple[str, Check]] = [("python", python), ("libraries", lambda: libraries(serves))]
    if serves or only_endpoints:  # else it is a user's machine, which stores nothing
        checks.append(("data folder", lambda: data_folder(folder, settings.disk_stop_percent, serves)))
    if serves:
        checks += [("inotify", inotify), ("log", lambda: log(settings))]
        checks.append(("log and view", lambda: storage_checks.divergence(folder)))
    if serves and not settings.log:
        checks.append(("stored log", lambda: storage_checks.stored_log(folder, deep)))
    if serves and not only_endpoints:
        checks.append(("port", lambda: port(settings.host, settings.port, folder)))
    checks.append(("url", lambda: client_checks.url(folder)))
    findings = [finding for name, check in checks for finding in guarded(name, check)]
    if findings[-1].ok:  # the URL: else nothing more is to be said of the server
        findings += guarded("server", lambda: server(folder))
    if json_:
        as_json(findings)
    else:
        for f in findings:
            mark = click.style("ok   ", fg="green") if f.ok else click.style("WRONG", fg="red")
            click.echo(f"{mark} {safe(f.check)}: {safe(f.found)}")
            if f.remedy and not f.ok:
                click.echo(f"      → {safe(f.remedy)}")
    if not all(f.ok for f in findings):
        raise SystemExit(1)


def guarded(name: str, check: Check) -> list[Finding]:
    """Run a check. If it raises, the error is its finding."""
    try:
        return list(check())
    except OncueError as e:
        return [Finding(name, False, e.message, e.remedy)]
    except OSError as e:
        return [Finding(name, False, f"{type(e).__name__}: {e}", "check this path by hand")]


def python() -> Iterator[Finding]:
    version_ = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", supported, f"{version_} at {sys.executable}", "oncue runs on Python 3.11 to 3.13")


def can_serve(folder: Path) -> bool:
    """Return True if this machine is meant to run a server.

    A server has run in this folder, or the server's libraries are installed. Some of them may be
    there for other packages, so that one of TELLING decides.
    """
    absent = missing(SERVER)
    return not absent or (folder / "log").exists() or any(name not in absent for name in TELLING)


def has_only_endpoints(folder: Path) -> bool:
    """Return True if the folder has endpoints and no server ever ran in it.

    Such a machine needs no ports.
    """
    return not (folder / "local.json").exists() and any(folder.glob("endpoints/*/agent.json"))


def libraries(serves: bool) -> Iterator[Finding]:
    for name in LIBRARIES:
        yield _library(name)
    if serves:
        for name in SERVER:
            yield _library(name)
    else:
        text = f"not installed: this install can run endpoints and the client; for a server: {pip_install(missing(SERVER))}"
        yield Finding("server libraries", True, text)


def _library(name: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "not installed", pip_install([name]))


def data_folder(folder: Path, stop_percent: float, serves: bool) -> Iterator[Finding]:
    from oncue.log.sqlite.mounts import network_mount

    place = next(p for p in (folder, *folder.parents) if p.exists())
    kind = network_mount(folder) if serves else None  # an endpoint may live on one
    local = "put the data on a local disk: oncue up --data DIR, or ONCUE_DATA"
    yield Finding(
        "data folder", kind is None, f"{folder}" + (f" is on a network mount ({kind})" if kind else ""), local
    )
    writable = os.access(place, os.W_OK)
    yield Finding(
        "data folder", writable, f"{place} can {'' if writable else 'not '}be written", f"chown or chmod {place}"
    )
    usage = shutil.disk_usage(place)
    percent = 100 * usage.used / (usage.used + usage.free)
    text = f"{percent:.0f} % full, {usage.free / 1e9:.1f} GB free"
    yield Finding("disk", percent < stop_percent, text, f"above {stop_percent:g} % nothing is accepted: make room")


def log(settings: Settings) -> Iterator[Finding]:
    """Check the Kafka cluster that has the log; an embedded log needs no check."""
    if not settings.log_url.startswith("kafka://"):
        return
    need("a check of the cluster")
    from oncue.dispatcher.topics import server_topics
    from oncue.protocol.topics import EVENTS, MATCHES, STREAM, WINDOWS, TaskTopics
    from oncue.rules.engine import GROUP as RULES
    from oncue.rules.stateful.kafka_runner import GROUP as STREAM_GROUP
    from oncue.rules.stateful.worker_reports import TOPIC as STREAM_TOPIC

    topics = server_topics(settings)
    # Topics of stateful rules keep the number of partitions that they were created with.
    topics |= {MATCHES: Topic(retention_ms=topics[EVENTS].retention_ms), WINDOWS: Topic(compact=True)}
    topics |= {STREAM: STREAM_TOPIC, **dict.fromkeys(TaskTopics(settings.task_topics).names(), Topic())}
    groups = {RULES: [EVENTS]}
    if settings.rules_memory == "stream":  # servers are no members of this group
        groups[STREAM_GROUP] = [MATCHES]
    yield from asyncio.run(examine_log(settings.log_url, settings, topics, groups))


def inotify() -> Iterator[Finding]:
    base = Path("/proc/sys/fs/inotify")
    if not base.exists():
        yield Finding("inotify", True, "not on this system; folders are watched by other means")
        return
    for name, least in (("max_user_watches", 65_536), ("max_queued_events", 16_384), ("max_user_instances", 128)):
        limit = int((base / name).read_text())
        yield Finding(f"inotify {name}", limit >= least, f"{limit:,}", f"sysctl fs.inotify.{name}={least}")


def port(host: str, number: int, folder: Path) -> Iterator[Finding]:
    from oncue.cli.local_server import local_server

    local = local_server(folder)
    if local is not None:
        yield Finding("port", True, f"the server of this folder listens at {local['url']}")
        return
    try:
        with socket.create_server((host, number)):
            pass
    except OSError as e:
        yield Finding(
            "port", False, f"{host}:{number}: {e.strerror}", "choose another port: oncue up --port N (0: any free one)"
        )
    else:
        yield Finding("port", True, f"{host}:{number} is free")


def server(folder: Path) -> Iterator[Finding]:
    from oncue import __version__
    from oncue.client import Client

    with Client(data=folder, patience=2) as client:
        before = time.time()
        answer = client.http.request("GET", "/v1/me")
        url, _ = client.http.target()
        yield Finding("server", True, f"{url} answers in {(time.time() - before) * 1000:.0f} ms")
        me = client.me
        fits = me.server.split(".")[:2] == __version__.split(".")[:2]
        yield Finding(
            "server version", fits, f"{me.server} (here {__version__})", "install the same version on both sides"
        )
        yield client_checks.token(me)
        date = answer.header(b"date")
        if date:
            shown = parsedate_to_datetime(date).timestamp()  # in whole seconds
            skew = max(0.0, shown - time.time(), before - shown - 1)
            yield Finding("clock", skew < SKEW_S, f"differs by {skew:.0f} s from the server's", "set the clock by NTP")
        health = msgspec.json.decode(client.http.request("GET", "/health/ready").body, type=Health)
        for title, check, remedy in (
            ("server's log", "log", "see the server's log"),
            ("server's blobs", "blobs", "set blobs_folder to one that all servers see"),
            ("rules", "rules", "oncue rules list says which, why, and what to do"),
            ("rules with memory", "rules with memory", "docs/rules.md, On Kafka, says who runs them"),
        ):
            status = health.checks.get(check, "ok")
            yield Finding(title, status == "ok", status, remedy)
        here = endpoints_here(folder)
        yield from triggers(client.triggers.list())
        yield from evaluations(client.rules.list())
        own = _own_endpoints(client, here)
        if not own:
            yield from client_checks.no_endpoints(me)
        for e in own:
            good = e.state == "connected" or (e.state == "revoked" and e.id not in here)
            text = f"{e.state}, {e.workers} workers" + (f": {e.why}" if e.why else "") + client_checks.python_of(e)
            name = e.name if e.owner == me.subject else f"{e.name} of {e.owner}"
            yield Finding(f"endpoint {name}", good, text, endpoint_remedy(e.name, e.state, folder, here.get(e.id)))


def triggers(all_: list[TriggerInfo]) -> Iterator[Finding]:
    """Report triggers that do not run, whoever deployed them: they miss events."""
    idle = [t for t in all_ if t.state in ("failed", "waiting")]
    for t in idle:
        repair = "create what it waits for" if t.state == "waiting" else "repair that"
        remedy = f"{repair}, or change its rule file and deploy it again; see `oncue triggers show {t.name}`"
        yield Finding(f"trigger {t.name}", False, f"{t.state}: {t.detail}" if t.detail else t.state, remedy)
    if all_ and not idle:
        yield Finding("triggers", True, f"all {len(all_)} run")


def evaluations(rules: list[RuleInfo]) -> Iterator[Finding]:
    """Report rules that miss events because their conditions cannot be evaluated."""
    for rule in rules:
        if text := unevaluated_text(rule):
            remedy = "let `when` test first what may be missing or of another type: has(data.x) && ..."
            explained = f"`oncue rules explain {rule.name} OFFSET` shows each step; deploy the corrected file"
            yield Finding(f"rule {rule.name}", False, text, f"{remedy}; {explained}")


def _own_endpoints(client: Client, here: Mapping[str, Path]) -> list[EndpointInfo]:
    """Return the caller's endpoints and those of this machine.

    An endpoint that is starting gets some seconds to connect. Endpoints of other people, which an
    admin can see, are left out.
    """
    deadline = time.monotonic() + 5
    while True:
        own = [e for e in client.endpoints.list() if e.owner == client.me.subject or e.id in here]
        if time.monotonic() > deadline or all(e.state in ("connected", "revoked") for e in own):
            return own
        time.sleep(0.1)


def endpoints_here(folder: Path) -> dict[str, Path]:
    """Return {id: folder} of the endpoints in this data folder."""
    from oncue.endpoint.settings import load

    folders = {}
    for path in folder.glob("endpoints/*/agent.json"):
        with contextlib.suppress(OncueError):
            folders[load(path.parent).id] = path.parent
    return folders


def endpoint_remedy(name: str, state: str, data: Path, folder: Path | None) -> str:
    """Return the command that brings an endpoint back;

    `folder` if it is on this machine.
    """
    if folder is None:
        return f"on its machine: oncue endpoint start {name} --detach"
    where = f"{name} --dir {shlex.quote(str(folder))}"
    if state != "revoked":
        return f"oncue endpoint start {where} --detach"
    again = f"ONCUE_DATA={shlex.quote(str(data))} oncue endpoint register {where}"
    return f"{again}; then, unless `oncue up` starts it by itself: oncue endpoint start {where} --detach"
