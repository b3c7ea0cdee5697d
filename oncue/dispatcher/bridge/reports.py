"""Appends agents' reports to the log: what runs, live output, load.

An agent may report on tasks that it has. The channel knows those that it was sent; for others the
view is asked. Reports may be lost, so what is too much is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.agent_limits import Drop
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.live_feed import about
from oncue.dispatcher.token_bucket import TokenBucket
from oncue.errors import Undecodable
from oncue.log import Record
from oncue.protocol.codec import decode, encode
from oncue.protocol.reports import Output, Report, Started, Usage
from oncue.protocol.topics import REPORTS

#: Of one agent: an honest one sends 256 KiB of output a second (agent.OUTPUT_RATE).
REPORTS_AT_ONCE, REPORTS_PER_S = 1_000, 200
BYTES_AT_ONCE, BYTES_PER_S = 4 << 20, 1 << 20
CHECKS = 8  # of one endpoint's reports, by the view at once


class _Sender:
    """Limits of one endpoint."""

    def __init__(self) -> None:
        self.number = TokenBucket(REPORTS_AT_ONCE, REPORTS_PER_S)
        self.bytes = TokenBucket(BYTES_AT_ONCE, BYTES_PER_S)
        self.checks = 0


class AgentReports:
    """Reports of all agents of this server."""

    def __init__(self, context: ServerContext, run: Callable[[Coroutine[Any, Any, None]], None], drop: Drop) -> None:
        self._context, self._run, self._drop = context, run, drop
        self._senders: dict[str, _Sender] = {}
        self.usage: dict[str, Usage] = {}  # endpoint -> its newest report

    def on_report(self, channel: EndpointChannel, body: bytes) -> None:
        """Append the report, unless it is of another endpoint's tasks."""
        endpoint, now = channel.endpoint, now_us() / 1e6
        sender = self._senders.setdefault(endpoint, _Sender())
        if not (sender.number.take(1, now) and sender.bytes.take(len(body), now)):
            self._drop(endpoint, "report", "sent more reports than are taken")
            return
        try:
            report: Report = decode(Report, body)  # type: ignore[arg-type]
        except Undecodable as e:
            self._drop(endpoint, "report", f"sent a report that cannot be decoded: {e.message}")
            return
        if report.endpoint != endpoint:
            self._drop(endpoint, "report", "reported as another endpoint")
            return
        report = channel.agent_clock.correct_report(report, channel.now_us)
        if isinstance(report, Usage):
            self.usage[endpoint] = report
            channel.waiting_for = report.waiting_for
            self._append(report)
        elif all(i in channel.in_flight for i in _tasks(report)):
            self._show_started(channel, report)
            self._append(report)
        elif sender.checks < CHECKS:
            sender.checks += 1
            self._run(self._check(endpoint, sender, report))
        else:
            self._drop(endpoint, "report", "reported on too many tasks that are not in flight")

    async def _check(self, endpoint: str, sender: _Sender, report: Started | Output) -> None:
        """Append what the report says about tasks that are the endpoint's by the view."""
        try:
            wanted = list(dict.fromkeys(_tasks(report)))
            calls = await self._context.view.calls_of(wanted)
        finally:
            sender.checks -= 1
        own = {i for i, call in calls.items() if call.endpoint == endpoint}
        if len(own) < len(wanted):
            self._drop(endpoint, "report", "reported on tasks that are not its own", len(wanted) - len(own))
        if not own:
            return
        if isinstance(report, Started):
            report = msgspec.structs.replace(report, tasks=tuple(t for t in report.tasks if t[0] in own))
        self._append(report)

    def _append(self, report: Report) -> None:
        # Reports may be lost, so the append is not awaited.
        record = Record(encode(report), key=report.endpoint.encode())
        self._context.log.append(REPORTS, [record]).add_done_callback(_ignore_error)

    def _show_started(self, channel: EndpointChannel, report: Started | Output) -> None:
        if not isinstance(report, Started) or not self._context.notifier.watched:
            return
        for task_id, attempt, started_us in report.tasks:
            group = channel.in_flight[task_id]
            item = {
                "id": task_id.hex(),
                "state": "running",
                "attempt": attempt,
                "started_us": started_us,
                **about(group.call),
            }
            self._context.notifier.publish_item("task", item)


def _tasks(report: Started | Output) -> Iterable[bytes]:
    return (report.task,) if isinstance(report, Output) else (t[0] for t in report.tasks)


def _ignore_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
