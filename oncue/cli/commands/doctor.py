"""`oncue doctor`: each check says ok, or what is wrong and what to do."""

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

from oncue.cli.output import as_json, json_option, safe
from oncue.config import Settings, load_settings
from oncue.errors import OncueError
from oncue.extras import SERVER, SERVER_PIP, TELLING, missing, need
from oncue.log import Finding, Topic, examine_log
from oncue.log.finding import SKEW_S
from oncue.protocol.api import EndpointInfo, Health, TriggerInfo

if TYPE_CHECKING:
    from oncue.client import Client

LIBRARIES = ("msgspec", "cloudpickle", "pyzmq", "psutil", "click", "rich", "aiohttp")

Check = Callable[[], Iterator[Finding]]


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="The data folder to check (default: ~/.oncue).")
@click.option("--log", "log_url", help="URL of the log to check (default: the setting `log`).")
@json_option
def doctor(data: str | None, log_url: str | None, json_: bool) -> None:
    """Check this machine, its log and its server. Exit code 1 when something is wrong.

    \b
    Example:
      oncue doctor
      oncue doctor --log kafka://broker1:9092,broker2:9092
    """
    settings = load_settings({"data": data, "log": log_url})
    folder = settings.data_path
    serves = can_serve(folder)
    servers_own: list[tuple[str, Check]] = [("inotify", inotify), ("log", lambda: log(settings))]
    if not endpoints_home(folder):
        servers_own.append(("port", lambda: port(settings.host, settings.port, folder)))
    checks: list[tuple[str, Check]] = [
        ("python", python),
        ("libraries", lambda: libraries(serves)),
        ("data folder", lambda: data_folder(folder, settings.disk_stop_percent, serves)),
        *(servers_own if serves else []),
        ("server", lambda: server(folder)),
    ]
    found = [finding for name, check in checks for finding in guarded(name, check)]
    if json_:
        as_json(found)
    else:
        for f in found:
            mark = click.style("ok   ", fg="green") if f.ok else click.style("WRONG", fg="red")
            click.echo(f"{mark} {safe(f.check)}: {safe(f.found)}")
            if f.remedy and not f.ok:
                click.echo(f"      → {safe(f.remedy)}")
    if not all(f.ok for f in found):
        raise SystemExit(1)


def guarded(name: str, check: Check) -> list[Finding]:
    """A check that cannot be made is a finding as well."""
    try:
        return list(check())
    except OncueError as e:
        return [Finding(name, False, e.message, e.remedy)]
    except OSError as e:
        return [Finding(name, False, f"{type(e).__name__}: {e}", "look at this place by hand")]


def python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", good, f"{here} at {sys.executable}", "oncue runs on Python 3.11 to 3.13")


def can_serve(folder: Path) -> bool:
    """Whether this is meant to run a server: one has run in this folder, or what only a server needs is installed.
    A part of those libraries may be here for other packages' sake."""
    absent = missing(SERVER)
    return not absent or (folder / "log").exists() or any(name not in absent for name in TELLING)


def endpoints_home(folder: Path) -> bool:
    """Whether endpoints live here and no server ever ran here: nobody is going to listen."""
    return not (folder / "local.json").exists() and any(folder.glob("endpoints/*/agent.json"))


def libraries(serves: bool) -> Iterator[Finding]:
    for name in LIBRARIES:
        yield _library(name, "pip install oncue")
    if serves:
        for name in SERVER:
            yield _library(name, SERVER_PIP)
    else:
        text = f"not installed: this install can run endpoints and the client; for a server: {SERVER_PIP}"
        yield Finding("server libraries", True, text)


def _library(name: str, pip: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, "not installed", pip)


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
    """A cluster that keeps it; where it is in the data folder there is nothing more to say."""
    if not settings.log_url.startswith("kafka://"):
        return
    need("a check of the cluster")
    from oncue.dispatcher.topics import server_topics
    from oncue.protocol.topics import EVENTS, MATCHES, STREAM, WINDOWS, TaskTopics
    from oncue.rules.engine import GROUP as RULES
    from oncue.rules.stateful.kafka_runner import GROUP as STREAM_GROUP
    from oncue.rules.stateful.worker_reports import TOPIC as STREAM_TOPIC

    topics = server_topics(settings)
    # Those of rules with memory keep the partitions that they were begun with.
    topics |= {MATCHES: Topic(retention_ms=topics[EVENTS].retention_ms), WINDOWS: Topic(compact=True)}
    topics |= {STREAM: STREAM_TOPIC, **dict.fromkeys(TaskTopics(settings.task_topics).names(), Topic())}
    groups = {RULES: [EVENTS]}
    if settings.rules_memory == "stream":  # a server is no member: it says itself what is wrong
        groups[STREAM_GROUP] = [MATCHES]
    yield from asyncio.run(examine_log(settings.log_url, settings, topics, groups))


def inotify() -> Iterator[Finding]:
    base = Path("/proc/sys/fs/inotify")
    if not base.exists():
        yield Finding("inotify", True, "not on this system; folders are watched in its own way")
        return
    for name, least in (("max_user_watches", 65_536), ("max_queued_events", 16_384), ("max_user_instances", 128)):
        limit = int((base / name).read_text())
        yield Finding(f"inotify {name}", limit >= least, f"{limit:,}", f"sysctl fs.inotify.{name}={least}")


def port(host: str, number: int, folder: Path) -> Iterator[Finding]:
    from oncue.cli.local_server import local_server

    local = local_server(folder)
    if local is not None:
        yield Finding("port", True, f"our server holds {local['url']}")
        return
    try:
        with socket.create_server((host, number)):
            pass
    except OSError as e:
        yield Finding(
            "port", False, f"{host}:{number}: {e.strerror}", "choose another: oncue up --port N (0: any free one)"
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
        yield Finding("token", True, f"{me.subject}, scopes {', '.join(me.scopes)}")
        date = answer.header(b"date")
        if date:
            skew = abs(parsedate_to_datetime(date).timestamp() - before)
            yield Finding("clock", skew < SKEW_S, f"differs by {skew:.0f} s from the server's", "set the clock by NTP")
        health = msgspec.json.decode(client.http.request("GET", "/health/ready").body, type=Health)
        for title, check, remedy in (
            ("server's log", "log", "see the server's log"),
            ("server's blobs", "blobs", "set blobs_folder to one that all servers see"),
            ("rules with memory", "rules with memory", "docs/rules.md, On Kafka, says who runs them"),
        ):
            told = health.checks.get(check, "ok")
            yield Finding(title, told == "ok", told, remedy)
        here = endpoints_here(folder)
        yield from triggers(client.triggers.list())
        for e in _settled(client, here):
            good = e.state == "connected" or (e.state == "revoked" and e.id not in here)
            text = f"{e.state}, {e.workers} workers" + (f": {e.why}" if e.why else "")
            name = e.name if e.owner == me.subject else f"{e.name} of {e.owner}"
            yield Finding(f"endpoint {name}", good, text, endpoint_remedy(e.name, e.state, folder, here.get(e.id)))


def triggers(found: list[TriggerInfo]) -> Iterator[Finding]:
    """One that does not run, whoever deployed it: what it would see is nobody's event."""
    idle = [t for t in found if t.state in ("failed", "waiting")]
    for t in idle:
        mend = "make what it waits for" if t.state == "waiting" else "mend that"
        remedy = f"{mend}, or change its rule file and deploy it again; `oncue triggers show {t.name}` says more"
        yield Finding(f"trigger {t.name}", False, f"{t.state}: {t.detail}" if t.detail else t.state, remedy)
    if found and not idle:
        yield Finding("triggers", True, f"all {len(found)} run")


def _settled(client: Client, here: Mapping[str, Path]) -> list[EndpointInfo]:
    """One's own endpoints, and those of this machine; one that is just starting gets some seconds to come. An admin sees
    those of others as well, which are not this machine's matter."""
    deadline = time.monotonic() + 5
    while True:
        found = [e for e in client.endpoints.list() if e.owner == client.me.subject or e.id in here]
        if time.monotonic() > deadline or all(e.state in ("connected", "revoked") for e in found):
            return found
        time.sleep(0.1)


def endpoints_here(folder: Path) -> dict[str, Path]:
    """id -> folder of the endpoints that this data folder holds."""
    from oncue.endpoint.settings import load

    found = {}
    for path in folder.glob("endpoints/*/agent.json"):
        with contextlib.suppress(OncueError):
            found[load(path.parent).id] = path.parent
    return found


def endpoint_remedy(name: str, state: str, data: Path, place: Path | None) -> str:
    if place is None:
        return f"on its machine: oncue endpoint start {name} --detach"
    where = f"{name} --dir {shlex.quote(str(place))}"
    if state != "revoked":
        return f"oncue endpoint start {where} --detach"
    again = f"ONCUE_DATA={shlex.quote(str(data))} oncue endpoint register {where}"
    return f"{again}; then, unless `oncue up` starts it by itself: oncue endpoint start {where} --detach"
