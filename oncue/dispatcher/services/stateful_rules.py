"""Runs the stateful rules of the server, and reports their state.

Stateful rules fold the topic `oncue.matches`. EmbeddedRunner runs them on an embedded log. On a
shared log, ServerRunner runs them on one of the servers, or stream workers run them and RemoteRules
observes those.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from oncue.clocks.process import now_ms
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.errors import Invalid, LogError, NotOwner, OncueError
from oncue.log import Partition
from oncue.protocol import api as r
from oncue.protocol import cloudevents
from oncue.protocol.records import Event
from oncue.rules.active_rules import ActiveRule
from oncue.rules.operators.preview import OperatorPreview
from oncue.rules.stateful.embedded_runner import EmbeddedRunner
from oncue.rules.stateful.handover import hand_over
from oncue.rules.stateful.kafka_runner import GROUP as KAFKA_GROUP
from oncue.rules.stateful.kafka_runner import PartitionFence
from oncue.rules.stateful.record_group import Queue, WindowSummary
from oncue.rules.stateful.remote import RemoteRules
from oncue.rules.stateful.server_runner import ServerRunner
from oncue.rules.stateful.topics import ensure_stream
from oncue.rules.stateful.worker_reports import StreamWorkers

log = logging.getLogger("oncue.windows")
ACTING = "windows"  # the owner of this key runs the stateful rules

RECENT_S = 10.0  # since the last failure: the runner is tried again each second


class StatefulRunner(Protocol):
    """Interface of EmbeddedRunner, ServerRunner and RemoteRules."""

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    def wake(self) -> None: ...

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview: ...

    async def buffers(self, entry: ActiveRule, events: Sequence[Event]) -> list[bool]: ...

    async def summary(self) -> dict[str, WindowSummary]: ...

    async def queues(self, rule: str, limiters: Sequence[str]) -> list[Queue]: ...


class StatefulRuleService:
    """Stateful rules in force. `start`, then `close`."""

    def __init__(
        self, context: ServerContext, deployed: DeployedRules, ownership: PartitionOwnership, peers: PeerClient
    ) -> None:
        self._context, self._deployed, self._ownership, self._peers = context, deployed, ownership, peers
        self._runner: StatefulRunner | None = None
        self._workers: StreamWorkers | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: tuple[float, str] | None = None  # when the runner ended last, and why
        self._counted: dict[str, tuple[int, int]] = {}  # rule -> (fired, suppressed) in the metrics

    # ------------------------------------------------------------ run

    async def start(self, path: Path) -> None:
        """Start the runner. `path`: the state file of an embedded log.

        Raises Invalid if stream workers are set and the log is not on Kafka.
        """
        settings = self._context.settings
        if self._deployed.off:
            return
        if settings.shared_log:
            await self._start_shared(path)
            return
        if settings.rules_memory == "stream":
            raise Invalid(
                'rules_memory is "stream", and the log is not on Kafka: no stream worker can run its stateful rules',
                remedy='set rules_memory to "server", or give a log on Kafka: oncue up --log kafka://host:port',
            )
        runner = EmbeddedRunner(self._context.log, self._context.registry, path, **self._needs_of_runner())
        self._runner = runner
        self._tasks = [self._repeated(lambda: self._ownership.run_while_owned(ACTING, runner.run))]

    async def _start_shared(self, path: Path) -> None:
        durable, settings = self._context.log, self._context.settings
        partitions = await ensure_stream(durable, settings)
        self._workers = StreamWorkers(durable)
        fence: PartitionFence = durable  # type: ignore[assignment]  # the log on Kafka can claim
        to_workers = settings.rules_memory == "stream"
        left: list[int] = []
        if to_workers or path.exists():
            left = await hand_over(durable, fence, path, to_workers=to_workers)
            if not left:  # the log has all of it
                for file in path.parent.glob(path.name + "*"):
                    file.unlink()
        if to_workers:
            self._runner = RemoteRules(durable, self._workers, partitions, left)
            self._tasks = [self._repeated(self._runner.run)]
            return
        runner = ServerRunner(
            durable,
            fence,
            self._context.registry,
            self._context.server_id,
            partitions,
            settings.log_url,
            **self._needs_of_runner(),
        )
        self._runner = runner
        self._tasks = [
            self._repeated(lambda: self._ownership.run_while_owned(ACTING, runner.run)),
            self._repeated(self._workers.run),
        ]

    def _needs_of_runner(self) -> dict[str, Any]:
        return {
            "active_rules": lambda: self._deployed.engine.active_rules,
            "before_batch": self._deployed.sync,
            "offload": self._deployed.offload,
            "history": self._deployed.version,
            "judge": self._deployed.engine.judge,
        }

    def _repeated(self, run: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        return asyncio.create_task(self._repeat(run), name="windows")

    async def _repeat(self, run: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await run()
            except NotOwner as e:  # after this process was paused, for instance
                log.warning("stateful rules go on where they are run now: %s", e)
            except OncueError as e:
                log.error("stateful rules wait, and are tried again: %s", e)
                self._note(e)
            except Exception:
                log.exception("stateful rules failed; they start again from where they were stored")
            await asyncio.sleep(1.0)

    def _note(self, e: OncueError) -> None:
        self._failed = time.monotonic(), f"stateful rules wait: {e.message}; {e.remedy}".rstrip("; ")

    async def close(self) -> None:
        """Stop the runner; its state is stored."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.close()

    def wake(self) -> None:
        """Look at the rules in force again."""
        if self._runner is not None:
            self._runner.wake()

    # ------------------------------------------------------------ look up

    def trouble(self) -> str:
        """Return the reason why stateful rules do not run, or run twice.

        "" if all is well or there are no stateful rules.
        """
        if not any(entry.rule.operators for entry in self._deployed.engine.active_rules.entries.values()):
            return ""
        if isinstance(self._runner, RemoteRules):
            return self._runner.trouble(self._context.settings.log_url)
        if isinstance(self._runner, ServerRunner) and self._runner.trouble:
            return self._runner.trouble
        if self._failed is not None and time.monotonic() < self._failed[0] + RECENT_S:
            return self._failed[1]
        others = self._workers.alive() if self._workers is not None else []
        if not others:
            return ""
        names = ", ".join(sorted(report.worker for report in others))
        return (
            f"the servers run stateful rules themselves, and there are stream workers: {names};"
            ' end these, or set rules_memory to "stream" for all servers'
        )

    async def with_windows(self, infos: list[r.RuleInfo]) -> list[r.RuleInfo]:
        """Add the open windows of stateful rules, if this server knows them."""
        elsewhere = not isinstance(self._runner, RemoteRules) and not self._ownership.owns(ACTING)
        if elsewhere or not any(info.memory for info in infos):
            return infos
        found, trouble = await self._summary(), self.trouble()
        return [self._with_window(info, found.get(info.name), trouble) if info.memory else info for info in infos]

    def _with_window(self, info: r.RuleInfo, w: WindowSummary | None, trouble: str) -> r.RuleInfo:
        if w is not None:
            info = msgspec.structs.replace(info, windows=w.windows, waiting=w.events, closes_us=w.due_ms * 1000)
        if isinstance(self._runner, RemoteRules) and (report := self._runner.workers.rules().get(info.name)):
            why = info.why or report.reason
            counts = {name: getattr(report, name) for name in ("fired", "suppressed", "shadow", "empty")}
            info = msgspec.structs.replace(info, why=why, **counts)
        if trouble and info.state == "active":
            info = msgspec.structs.replace(info, why="; ".join(filter(None, (trouble, info.why))))
        return info

    async def with_waits(self, info: r.RuleInfo) -> r.RuleInfo:
        """Add why firings of a rule wait for its limits, if this server knows it."""
        entry = self._deployed.engine.active_rules.entries.get(info.name)
        if self._runner is None or entry is None or entry.rule.operators is None or not info.waiting:
            return info
        limiters = {each.limiter.name(): each.limiter for each in entry.rule.operators.limiters}
        found = await self._runner.queues(info.name, tuple(limiters)) if limiters else []
        return msgspec.structs.replace(
            info, waits=[limiters[w.operator].waits(state, w.key, now_ms()) for w, state in found]
        )

    async def with_peers(self, infos: list[r.RuleInfo], bearer: str) -> list[r.RuleInfo]:
        """Add the counts of the other servers.

        Open windows come from the server that runs the stateful rules.
        """
        urls = self._ownership.peer_urls() if infos and bearer else []
        if not urls:
            return infos
        there: dict[str, list[r.RuleInfo]] = {}
        for answer in await asyncio.gather(*(self._peers.rules(url, bearer) for url in urls)):
            for info in answer:
                there.setdefault(info.name, []).append(info)
        streamed = isinstance(self._runner, RemoteRules)  # then each server has the workers' counts
        return [i if i.memory and streamed else _summed([i, *there.get(i.name, ())]) for i in infos]

    async def with_preview(self, explained: r.Explanation, name: str, event: Event) -> r.Explanation:
        """Add what the operators would do with the event now, if all conditions hold."""
        entry = self._deployed.engine.active_rules.entries.get(name)
        if entry is None or entry.rule.operators is None or not explained.fires or self._runner is None:
            return explained
        if len(cloudevents.to_record(event)[0]) > entry.cost().all:
            return msgspec.structs.replace(explained, why=f"{explained.why} (not shown for so large an event)")
        try:
            preview = await self._runner.preview(entry, event)
        except Invalid as e:
            return msgspec.structs.replace(explained, fires=False, why=e.message)
        return msgspec.structs.replace(
            explained,
            fires=preview.passes,
            why="; ".join(filter(None, (preview.why or explained.why, self.trouble()))),
            steps=[*explained.steps, *preview.steps],
            args=explained.args if preview.passes else None,
        )

    async def has_folded(self, ends: Mapping[Partition, int]) -> bool:
        """Return True if the matches below these offsets are folded.

        Then the tasks of all that fired are durable.
        """
        if isinstance(self._runner, EmbeddedRunner):
            at, markers = self._runner.positions(), 0
        else:
            at, markers = await self._context.log.committed(KAFKA_GROUP), 1  # of the last transaction
        return all(at.get(partition, 0) >= end - markers for partition, end in ends.items())

    async def buffers(self, rule: str, events: Sequence[Event]) -> list[bool]:
        """Return for each event if an operator or a limit of the rule holds it."""
        entry = self._deployed.engine.active_rules.entries.get(rule)
        if entry is None or self._runner is None:
            return [False] * len(events)
        return await self._runner.buffers(entry, events)

    async def update_metrics(self) -> None:
        """Bring the rules' counters and gauges up to date for /metrics."""
        now = self._deployed.engine.counts()
        if isinstance(self._runner, RemoteRules):
            now |= self._runner.workers.counted
        counted = self._counted
        more = {}
        for name, counts in now.items():
            # A repeated event is found after it was counted: the surplus is not counted again.
            fired, suppressed = counted.get(name, (0, 0))
            more[name] = (max(0, counts[0] - fired), max(0, counts[1] - suppressed))
            counted[name] = (max(fired, counts[0]), max(suppressed, counts[1]))
        self._context.metrics.rules_fired({name: fired for name, (fired, _) in more.items() if fired > 0})
        self._context.metrics.rules_suppressed({name: count for name, (_, count) in more.items() if count > 0})
        self._context.metrics.rules_unevaluated(self._deployed.engine.unevaluated())
        found = await self._summary()
        self._context.metrics.windows({rule: (w.windows, w.events) for rule, w in found.items()})

    async def _summary(self) -> dict[str, WindowSummary]:
        if self._runner is None:
            return {}
        try:
            return await self._runner.summary()
        except LogError as e:  # the other rules are shown all the same
            self._note(e)
            return {}


def _summed(infos: list[r.RuleInfo]) -> r.RuleInfo:
    """Return one rule of several servers, with the sum of their counts.

    The state and reason are of a server where the rule cannot fire, if there is one.
    """
    acting = max(infos, key=lambda info: info.windows)
    last = max(infos, key=lambda info: info.unevaluated_us)
    ill = next((info for info in infos if info.state != "active"), None) or next((i for i in infos if i.why), infos[0])
    return msgspec.structs.replace(
        infos[0],
        state=ill.state,
        why=ill.why,
        fired=sum(info.fired for info in infos),
        suppressed=sum(info.suppressed for info in infos),
        windows=acting.windows,
        waiting=acting.waiting,
        closes_us=acting.closes_us,
        empty=sum(info.empty for info in infos),
        shadow=sum(info.shadow for info in infos),
        unevaluated=sum(info.unevaluated for info in infos),
        unevaluated_why=last.unevaluated_why,
        unevaluated_source=last.unevaluated_source,
        unevaluated_event=last.unevaluated_event,
        unevaluated_us=last.unevaluated_us,
    )
