"""StreamWorker: the `oncue stream` process.

Assembled from log, registry, runner and reports:

oncue.registry ──► Registry ──► rules, endpoints ──┐
oncue.matches ──► Faust (given: `app`) ──► KafkaRunner ──► tasks, dead letters, oncue.windows
                                           └──► a report every 2 s ──► oncue.stream
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from oncue import __version__
from oncue.blobs import open_blobs
from oncue.clocks.process import now_us
from oncue.config import Settings
from oncue.errors import LogError, OncueError
from oncue.log import open_log
from oncue.log.base import OPEN_AGAIN, Log, Record
from oncue.protocol import payload
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.protocol.topics import REGISTRY, STREAM, TaskTopics
from oncue.rules.active_rules import ActiveRule
from oncue.rules.evaluation.judge import RuleJudge, pause_of
from oncue.rules.registry_reader import RegistryReader
from oncue.rules.stateful.handover import start_at_end, wait_for_handover
from oncue.rules.stateful.kafka_runner import KafkaRunner, PartitionFence
from oncue.rules.stateful.topics import ensure_stream
from oncue.rules.stateful.worker_reports import REASON_CHARS, REPORT_S, SOON_S, RuleReport, StreamReport

START_S = 60.0
CLOSE_S = 8.0
_log = logging.getLogger(__name__)


class App(Protocol):
    """FaustApp."""

    async def run(self) -> None: ...


# (runner, partitions, callback for assigned partitions) -> app
MakeApp = Callable[[KafkaRunner, int, Callable[[list[int]], None]], App]


async def serve(
    settings: Settings,
    make: MakeApp,
    stopping: asyncio.Event,
    ready: Callable[[list[int]], None],
    say: Callable[[str], None],
    anew: bool = False,
) -> None:
    """Run a worker until `stopping`. Raises LogError.

    `ready` is called with this worker's partitions whenever they change. `anew`: start partitions
    that were never handed over at the log's end.
    """
    log = await open_log(settings.log_url, settings)
    try:
        partitions = await ensure_stream(log, settings)
        if anew and (numbers := await start_at_end(log, _fence(log))):
            say(
                f"the partitions {', '.join(map(str, numbers))} start at the log's end: their open windows are not known"
            )
        if await _unless(stopping, wait_for_handover(log, say)):
            await StreamWorker(log, settings).run(make, partitions, stopping, ready)
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(log.close(), CLOSE_S)


def _fence(log: Log) -> PartitionFence:
    return log  # type: ignore[return-value]  # the log on Kafka can claim


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Return True if the work completed before `stopping` was set."""
    tasks = [asyncio.create_task(work), asyncio.create_task(stopping.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    ended = tasks[0].done()
    for task in tasks:
        task.cancel()
    if ended:
        tasks[0].result()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ended


class StreamWorker:
    def __init__(self, log: Log, settings: Settings) -> None:
        self._log = log
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._blobs = open_blobs(settings.blobs_folder or str(settings.data_path / "blobs"))
        self.registry = RegistryReader(log, lambda: self.runner.wake(), TaskTopics(settings.task_topics))
        self.judge = RuleJudge(self._pause)
        self.runner = KafkaRunner(
            log,
            _fence(log),
            self.registry,
            lambda: self.registry.active_rules,
            self.name,
            before_batch=self.registry.caught_up,
            offload=self._offload,
            history=self.registry.deployment,
            judge=self.judge,
        )

    async def _pause(self, entry: ActiveRule, why: str) -> bool:
        """Pause a rule here, at once, and record it for all servers and workers."""
        self.registry.pause(entry, why)
        try:
            await self._log.append(
                REGISTRY, [Record(encode(pause_of(entry, why)), f"switch:{entry.rule.name}".encode())]
            )
        except OncueError as e:
            _log.error("the pause of the rule %r could not be recorded: %s", entry.rule.name, e)
            return False
        return True

    async def _offload(self, packed: bytes) -> bytes:
        sha = await asyncio.to_thread(self._blobs.put, packed)
        return payload.pack_ref(payload.Ref(sha, len(packed)))

    async def run(
        self, make: MakeApp, partitions: int, stopping: asyncio.Event, ready: Callable[[list[int]], None]
    ) -> None:
        parts: list[Coroutine[Any, Any, object]] = [self.registry.run()]
        running = [asyncio.create_task(part) for part in parts]
        try:
            await _within(self.registry.caught_up(), running, START_S)
            app = make(self.runner, partitions, ready)
            parts = [self.runner.run(), self.runner.watch_claims(), self._watch_log(), self._reports(), app.run()]
            running += [asyncio.create_task(part) for part in parts]
            end = asyncio.create_task(stopping.wait())
            done, _ = await asyncio.wait([*running, end], return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
            for task in done - {end}:
                task.result()  # each of them ends only by an error
        finally:
            for task in reversed(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self.runner.close()
            await self.judge.close()
            with contextlib.suppress(LogError, TimeoutError):
                await asyncio.wait_for(self._log.append(STREAM, [Record(b"", self.name.encode())]), CLOSE_S)

    async def _watch_log(self) -> None:
        """Raises LogError when the log has to be opened again."""
        while True:
            if lost := self._log.lost():
                raise LogError(lost, remedy=OPEN_AGAIN)
            await asyncio.sleep(SOON_S)

    async def _reports(self) -> None:
        while True:
            self.runner.fired.clear()
            await self._log.append(STREAM, [Record(encode(self.report()), self.name.encode())])
            await asyncio.sleep(SOON_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.runner.fired.wait(), REPORT_S - SOON_S)

    def report(self) -> StreamReport:
        windows = self.runner.summary()
        rules = []
        for name, entry in self.registry.active_rules.entries.items():
            counts = entry.counters
            made = counts.fired, counts.suppressed, counts.failed
            if name in windows or any(made) or counts.shadow or counts.empty:
                w = windows.get(name)
                open_, events, due_ms = w if w else (0, 0, 0)
                reason = counts.last_reason[:REASON_CHARS]
                rules.append(RuleReport(name, open_, events, due_ms, *made, reason, counts.shadow, counts.empty))
        ready = tuple(sorted(n for n, part in self.runner.parts.items() if part.ready))
        return StreamReport(VERSION, self.name, now_us(), __version__, ready, tuple(rules))


async def _within(work: Awaitable[None], running: list[asyncio.Task[object]], seconds: float) -> None:
    """Await `work`; raise the error of a running task that it depends on.

    Raises LogError.
    """
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task, *running}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if not done:
        task.cancel()
        raise LogError(f"the registry could not be read in {seconds:.0f} s", remedy="look at Kafka: oncue doctor")
    for ended in done:
        ended.result()
