"""`oncue status`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from oncue.cli.client import connected
from oncue.cli.output import STATES, as_json, json_option, number_of, safe, when
from oncue.cli.tasks.filters import count_text
from oncue.client import Client
from oncue.clocks.process import now_us
from oncue.errors import Forbidden
from oncue.protocol.api import (
    FAILED_STATES,
    DeadInfo,
    EndpointInfo,
    Health,
    RuleInfo,
    TaskCount,
    TaskInfo,
    TriggerInfo,
)

DAY_US = 86_400_000_000
READ = 200  # newest tasks that are read for their reasons
LINES = 5  # reasons that are shown
_NUMBERS = re.compile(r"\d[\d.,]*")


class Tasks(msgspec.Struct, frozen=True):
    """Numbers of tasks, and the newest of those that are open or have failed."""

    running: TaskCount
    waiting: TaskCount
    retrying: TaskCount
    cancelling: TaskCount
    succeeded: TaskCount  # in the last 24 hours
    failed: TaskCount  # in the last 24 hours, and not retried by hand
    open: list[TaskInfo]
    failures: list[TaskInfo]


class Report(msgspec.Struct, frozen=True):
    """Content of the screen."""

    url: str
    server: str  # version
    subject: str
    health: Health
    endpoints: list[EndpointInfo]
    tasks: Tasks
    triggers: list[TriggerInfo]
    rules: list[RuleInfo]
    dead: list[DeadInfo]  # the newest


@click.command()
@json_option
def status(json_: bool) -> None:
    """Show what runs, waits and failed, why, and what to do.

    \b
    Example:
      oncue status
    """
    with connected() as client:
        report = read(client)
    if json_:
        as_json(report)
        return
    for line in lines(report):
        click.echo(line)


def read(client: Client) -> Report:
    """Ask the server. Each list is bounded."""
    me = client.me
    since = now_us() - DAY_US
    count = client.tasks.count
    health = msgspec.json.decode(client.http.request("GET", "/health/ready").body, type=Health)
    newest = client.tasks.list(state=FAILED_STATES, since_us=since, not_retried=True, limit=READ)
    tasks = Tasks(
        count(state="running"),
        count(state="waiting"),
        count(state="retrying"),
        count(state="cancelling"),
        count(state="succeeded", since_us=since),
        count(state=FAILED_STATES, since_us=since, not_retried=True),
        list(client.tasks.list(state="open", limit=READ)),
        list(newest),
    )
    try:
        dead = list(client.dead.list(READ))
    except Forbidden:
        dead = []
    endpoints = [e for e in client.endpoints.list() if e.state != "revoked"]
    rules, triggers = client.rules.list(), client.triggers.list()
    return Report(client.http.target()[0], me.server, me.subject, health, endpoints, tasks, triggers, rules, dead)


# ---------------------------------------------------------------- text


def lines(r: Report) -> Iterator[str]:
    """Yield the lines of the screen."""
    state = "" if r.health.status == "ok" else f", {r.health.status}"
    yield _head("server", f"{r.url}, oncue {r.server}, you are {r.subject}{state}")
    for check, found in r.health.checks.items():
        if found != "ok" and check != "triggers":
            yield _wrong(f"{check}: {found}", "oncue doctor")
    yield from _endpoints(r.endpoints)
    yield from _open(r.tasks)
    yield from _failures(r.tasks)
    yield from _rules(r)
    if r.dead:
        yield _head("dead letters", f"{_many(len(r.dead), READ)} to look at")
        for reason, n in Counter(d.reason for d in r.dead).most_common(LINES):
            yield _wrong(f"{n}× {reason}", "")
        yield _todo("oncue dead list; then oncue dead retry ID, or oncue dead dismiss ID")


def _endpoints(endpoints: list[EndpointInfo]) -> Iterator[str]:
    if not endpoints:
        yield _head("endpoints", "none")
        yield _todo("oncue endpoint register NAME, on the machine that shall run functions")
        return
    connected = [e for e in endpoints if e.state == "connected"]
    busy, workers = sum(e.busy for e in connected), sum(e.workers for e in connected)
    yield _head("endpoints", f"{len(connected)} of {len(endpoints)} connected, {busy} of {workers} workers busy")
    for e in sorted(endpoints, key=lambda e: (e.state == "connected", e.name))[: 2 * LINES]:
        if e.state == "connected":
            yield f"    {_color('connected')}  {safe(e.name)}: {e.busy} of {e.workers} workers busy, {e.waiting:,} open"
        else:
            state = "has never connected" if e.state == "never" else f"is {e.state}"
            since = f" since {when(e.since_us)}" if e.since_us else ""
            waits = f", {number_of(e.waiting, 'open task')}" if e.waiting else ""
            yield _wrong(f"{e.name} {state}{since}{waits}" + (f": {e.why}" if e.why else ""), "")
            yield _todo(f"on its machine: oncue endpoint start {e.name} --detach")
    if len(endpoints) > 2 * LINES:
        yield f"    ... and {len(endpoints) - 2 * LINES} more: oncue endpoints list"


def _open(tasks: Tasks) -> Iterator[str]:
    numbers = [
        f"{count_text(number)} {name}"
        for name, number in (
            ("running", tasks.running),
            ("waiting", tasks.waiting),
            ("retrying", tasks.retrying),
            ("cancelling", tasks.cancelling),
        )
        if number.count or name in ("running", "waiting")
    ]
    yield _head("tasks", ", ".join(numbers))
    waits = [t for t in tasks.open if t.state != "running"]
    for n, t in _grouped(waits, lambda t: t.why):
        yield f"    {n:,}× {safe(t.why or t.state)}"
    if waits:
        yield _todo("oncue tasks list --state open")


def _failures(tasks: Tasks) -> Iterator[str]:
    yield _head(
        "last 24 h", f"{count_text(tasks.succeeded)} succeeded, {count_text(tasks.failed)} failed (and not retried)"
    )
    for n, t in _grouped(tasks.failures, lambda t: f"{t.rule}\0{t.name}\0{t.state}\0{t.why}"):
        whose = f"rule {t.rule}, {t.name}" if t.rule else t.name
        yield _wrong(f"{n:,}× {t.state}: {whose}: {t.why}", "")
        yield _todo(f"oncue tasks show {t.short or t.id}")
    if tasks.failures:
        yield _todo("after a fix: oncue tasks retry --state failed --since 24h --dry-run")


def _rules(r: Report) -> Iterator[str]:
    idle = [t for t in r.triggers if t.state in ("failed", "waiting")]
    off = [rule for rule in r.rules if rule.state != "active" or rule.unevaluated]
    if not r.triggers and not r.rules:
        return
    active, run = sum(rule.state == "active" for rule in r.rules), len(r.triggers) - len(idle)
    yield _head("rules", f"{active} of {len(r.rules)} active; {run} of {len(r.triggers)} triggers run")
    for trigger in idle[:LINES]:
        yield _wrong(f"trigger {trigger.name} {trigger.state}: {trigger.detail}", f"oncue triggers show {trigger.name}")
    for rule in off[:LINES]:
        if rule.state != "active":
            yield _wrong(f"rule {rule.name} is {rule.state}: {rule.why}", "")
        if rule.unevaluated:
            text = f"could not be evaluated for {rule.unevaluated:,} events: {rule.unevaluated_why}"
            yield _wrong(f"rule {rule.name}: its condition {text}", "oncue rules list")


def _grouped(tasks: list[TaskInfo], key: Any) -> list[tuple[int, TaskInfo]]:
    """Return (number, newest) of tasks whose reason differs in numbers only."""
    first: dict[str, TaskInfo] = {}
    counts: Counter[str] = Counter()
    for t in tasks:
        text = _NUMBERS.sub("#", key(t))
        first.setdefault(text, t)
        counts[text] += 1
    return [(n, first[text]) for text, n in counts.most_common(LINES)]


def _head(name: str, text: str) -> str:
    return click.style(f"{name:13}", bold=True) + safe(text)


def _wrong(text: str, remedy: str) -> str:
    return "    " + click.style(safe(text), fg="red") + (f"\n{_todo(remedy)}" if remedy else "")


def _todo(text: str) -> str:
    return f"      → {safe(text)}"


def _color(state: str) -> str:
    return click.style(state, fg=STATES.get(state))


def _many(n: int, most: int) -> str:
    return f"{n} or more" if n >= most else str(n)
