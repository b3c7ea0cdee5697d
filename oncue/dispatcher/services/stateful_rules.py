"""Rules with memory, as the server runs them: `oncue.matches`, its host, and what is told of open windows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from oncue.dispatcher.services.events import EventDesk
from oncue.errors import Invalid, NotOwner, OncueError
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.records import Deployment, Event
from oncue.protocol.topics import REGISTRY
from oncue.rules.active_rules import ActiveRule
from oncue.rules.engine import Engine
from oncue.rules.operators.preview import OperatorPreview
from oncue.rules.stateful.embedded_runner import EmbeddedRunner
from oncue.rules.stateful.handover import hand_over
from oncue.rules.stateful.kafka_runner import Fence
from oncue.rules.stateful.record_group import Summary
from oncue.rules.stateful.remote import RemoteRules
from oncue.rules.stateful.server_runner import ServerRunner
from oncue.rules.stateful.topics import ensure_stream
from oncue.rules.stateful.worker_reports import StreamWorkers

log = logging.getLogger("oncue.windows")
ACTING = "windows"  # whoever acts for this runs rules with memory


class Windows(Protocol):
    """EmbeddedRunner where the log is this server's alone, else ServerRunner; or RemoteRules where stream workers run the
    rules."""

    async def run(self) -> None: ...

    async def close(self) -> None: ...

    def wake(self) -> None: ...

    async def preview(self, entry: ActiveRule, event: Event) -> OperatorPreview: ...

    async def summary(self) -> dict[str, Summary]: ...


class WindowDesk(EventDesk):
    engine: Engine
    windows: Windows

    async def start_windows(self, path: Path) -> None:
        """Raises Invalid: stream workers are wanted, on a log that they cannot work on."""
        self._told: dict[str, tuple[int, int]] = {}  # rule -> (fired, suppressed) that the metrics have
        self._workers: StreamWorkers | None = None
        if self.settings.shared_log:
            await self._start_shared(path)
            return
        if self.settings.rules_memory == "stream":
            raise Invalid(
                'rules_memory is "stream", and the log is not on Kafka: no stream worker can run its rules with memory',
                remedy='set rules_memory to "server", or give a log on Kafka: oncue up --log kafka://host:port',
            )
        self.windows = EmbeddedRunner(self.log, self, path, **self._parts_of_host())
        self._windows_tasks = [self._kept(lambda: self.owners.run_while_owned(ACTING, self.windows.run))]

    async def _start_shared(self, path: Path) -> None:
        partitions = await ensure_stream(self.log, self.settings)
        self._workers = StreamWorkers(self.log)
        fence: Fence = self.log  # type: ignore[assignment]  # the log on Kafka can claim
        to_workers = self.settings.rules_memory == "stream"
        left: list[int] = []
        if to_workers or path.exists():
            left = await hand_over(self.log, fence, path, to_workers=to_workers)
            if not left:  # the log has all of it
                for file in path.parent.glob(path.name + "*"):
                    file.unlink()
        if to_workers:
            self.windows = RemoteRules(self.log, self._workers, partitions, left)
            self._windows_tasks = [self._kept(self.windows.run)]
            return
        self.windows = ServerRunner(
            self.log, fence, self, self.server_id, partitions, self.settings.log_url, **self._parts_of_host()
        )
        self._windows_tasks = [
            self._kept(lambda: self.owners.run_while_owned(ACTING, self.windows.run)),
            self._kept(self._workers.run),
        ]

    def _parts_of_host(self) -> dict[str, Any]:
        return {
            "book": lambda: self.engine.book,
            "before_batch": self._registry_caught_up,
            "offload": self._offload,
            "history": self._deployed_then,
        }

    def _kept(self, run: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        return asyncio.create_task(self._keep(run), name="windows")

    async def _keep(self, run: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await run()
            except NotOwner as e:  # after it was paused, say
                log.warning("rules with memory go on where they are run now: %s", e)
            except OncueError as e:
                log.error("rules with memory wait, and are tried again: %s", e)
            except Exception:
                log.exception("rules with memory failed; they start again from where they were stored")
            await asyncio.sleep(1.0)

    async def stop_windows(self) -> None:
        for task in self._windows_tasks:
            task.cancel()
        await asyncio.gather(*self._windows_tasks, return_exceptions=True)
        await self.windows.close()

    def memory_trouble(self) -> str:
        """What is wrong with who runs rules with memory; "": nothing, or there are none."""
        if not any(entry.rule.operators for entry in self.engine.book.entries.values()):
            return ""
        if isinstance(self.windows, RemoteRules):
            return self.windows.trouble(self.settings.log_url)
        if isinstance(self.windows, ServerRunner) and self.windows.trouble:
            return self.windows.trouble
        others = self._workers.alive() if self._workers is not None else []
        if not others:
            return ""
        names = ", ".join(sorted(report.worker for report in others))
        return (
            f"the servers run rules with memory themselves, and there are stream workers: {names};"
            ' end these, or set rules_memory to "stream" for all servers'
        )

    async def _registry_caught_up(self) -> None:
        """A deploy that was acknowledged is in force for later events."""
        await self.view.wait_for(await self.log.end_offsets((REGISTRY,)), 5.0)

    async def _offload(self, packed: bytes) -> bytes:
        sha = await asyncio.to_thread(self.blobs.put, packed)
        return payload.pack_ref(payload.Ref(sha, len(packed)))

    async def _deployed_then(self, label: str, version: int) -> Deployment | None:
        history = await self.view.deployment_history(label)
        return next((d for d in history if d.version == version and not d.removed), None)

    # ------------------------------------------------------------ looking

    async def with_windows(self, infos: list[r.RuleInfo]) -> list[r.RuleInfo]:
        elsewhere = not isinstance(self.windows, RemoteRules) and not self.owners.owns(ACTING)
        if elsewhere or not any(info.memory for info in infos):
            return infos
        found, trouble = await self.windows.summary(), self.memory_trouble()
        return [self._with_window(info, found.get(info.name), trouble) if info.memory else info for info in infos]

    def _with_window(self, info: r.RuleInfo, w: Summary | None, trouble: str) -> r.RuleInfo:
        if w is not None:
            info = msgspec.structs.replace(info, windows=w.windows, waiting=w.events, closes_us=w.due_ms * 1000)
        if isinstance(self.windows, RemoteRules) and (told := self.windows.workers.rules().get(info.name)):
            info = msgspec.structs.replace(info, fired=told.fired, suppressed=told.suppressed)
        if trouble and info.state == "active":
            info = msgspec.structs.replace(info, why="; ".join(filter(None, (trouble, info.why))))
        return info

    async def with_others(self, infos: list[r.RuleInfo], bearer: str) -> list[r.RuleInfo]:
        """With what the other servers have counted, and the open windows of the one that has them."""
        urls = self.owners.peer_urls() if infos and bearer else []
        there: dict[str, list[r.RuleInfo]] = {}
        for answer in await asyncio.gather(*(self.across.rules(url, bearer) for url in urls)):
            for info in answer:
                there.setdefault(info.name, []).append(info)
        streamed = isinstance(self.windows, RemoteRules)  # then each server has the workers' counts
        return [i if i.memory and streamed else _summed([i, *there.get(i.name, ())]) for i in infos]

    async def with_preview(self, explained: r.Explanation, name: str, event: Event) -> r.Explanation:
        """Where all conditions hold: what the rule's memory would do with the event now."""
        entry = self.engine.book.entries.get(name)
        if entry is None or entry.rule.operators is None or not explained.fires:
            return explained
        try:
            preview = await self.windows.preview(entry, event)
        except Invalid as e:
            return msgspec.structs.replace(explained, fires=False, why=e.message)
        return msgspec.structs.replace(
            explained,
            fires=preview.passes,
            why="; ".join(filter(None, (preview.why or explained.why, self.memory_trouble()))),
            steps=[*explained.steps, *preview.steps],
            args=explained.args if preview.passes else None,
        )

    async def count_rules(self) -> None:
        """For /metrics."""
        now = {info.name: (info.fired, info.suppressed) for info in self.engine.rules()}
        if isinstance(self.windows, RemoteRules):
            now |= self.windows.workers.counted
        told = self._told
        more = {}
        for name, counts in now.items():
            # A double is found after it was counted: what was told for a moment too much is not told again.
            fired, suppressed = told.get(name, (0, 0))
            more[name] = (max(0, counts[0] - fired), max(0, counts[1] - suppressed))
            told[name] = (max(fired, counts[0]), max(suppressed, counts[1]))
        self.metrics.rules_fired({name: fired for name, (fired, _) in more.items() if fired > 0})
        self.metrics.rules_suppressed({name: count for name, (_, count) in more.items() if count > 0})
        found = await self.windows.summary()
        self.metrics.windows({rule: (w.windows, w.events) for rule, w in found.items()})


def _summed(infos: list[r.RuleInfo]) -> r.RuleInfo:
    """One rule, as several servers tell of it: the first, with the counts of all, and what keeps it from firing anywhere."""
    acting = max(infos, key=lambda info: info.windows)
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
    )
