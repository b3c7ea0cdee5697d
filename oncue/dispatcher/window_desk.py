"""Rules with memory, as the server runs them: `oncue.matches`, its host, and what is told of open windows."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from oncue import payload
from oncue import resources as r
from oncue.dispatcher.event_desk import EventDesk
from oncue.errors import Invalid, OncueError
from oncue.log import Topic
from oncue.messages import MATCHES, REGISTRY, Deployment, Event
from oncue.rules.engine import Engine
from oncue.rules.window_host import WindowHost

log = logging.getLogger("oncue.windows")
WINDOWS = "windows"  # whoever acts for this runs rules with memory


class WindowDesk(EventDesk):
    engine: Engine
    windows: WindowHost

    async def ensure_matches(self, retention_ms: int) -> None:
        """The partitions are fixed from the first start on: with their number the place of each key would change."""
        there, wanted = (await self.log.topics()).get(MATCHES), self.settings.matches_partitions
        partitions = there.partitions if there is not None else wanted
        if partitions != wanted:
            log.warning(
                "%s keeps its %d partitions (the setting matches_partitions is %d)", MATCHES, partitions, wanted
            )
        await self.log.ensure({MATCHES: Topic(partitions=partitions, retention_ms=retention_ms)})

    def start_windows(self, path: Path) -> None:
        self._told: dict[str, tuple[int, int]] = {}  # rule -> (fired, suppressed) that the metrics have
        self.windows = WindowHost(
            self.log,
            self,
            path,
            lambda: self.engine.book,
            before_batch=self._registry_caught_up,
            offload=self._offload,
            history=self._deployed_then,
        )
        self._windows_task = asyncio.create_task(self._keep_windows(), name="windows")

    async def _keep_windows(self) -> None:
        """On one of the servers: the others have no part in it."""
        while True:
            try:
                await self.owners.while_acting(WINDOWS, self.windows.run)
            except OncueError as e:
                log.error("rules with memory wait, and are tried again: %s", e)
            except Exception:
                log.exception("rules with memory failed; they start again from where they were stored")
            await asyncio.sleep(1.0)

    async def stop_windows(self) -> None:
        self._windows_task.cancel()
        await asyncio.gather(self._windows_task, return_exceptions=True)
        await self.windows.close()

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
        if not any(info.memory for info in infos):
            return infos
        found = await self.windows.summary()
        return [
            msgspec.structs.replace(info, windows=w.windows, waiting=w.events, closes_us=w.due_ms * 1000)
            if (w := found.get(info.name))
            else info
            for info in infos
        ]

    async def with_outlook(self, explained: r.Explanation, name: str, event: Event) -> r.Explanation:
        """Where all conditions hold: what the rule's memory would do with the event now."""
        entry = self.engine.book.entries.get(name)
        if entry is None or entry.rule.memory is None or not explained.fires:
            return explained
        try:
            outlook = await self.windows.outlook(entry, event)
        except Invalid as e:
            return msgspec.structs.replace(explained, fires=False, why=e.message)
        return msgspec.structs.replace(
            explained,
            fires=outlook.passes,
            why=outlook.why or explained.why,
            steps=[*explained.steps, *outlook.steps],
            args=explained.args if outlook.passes else None,
        )

    async def count_rules(self) -> None:
        """For /metrics."""
        now = {info.name: (info.fired, info.suppressed) for info in self.engine.rules()}
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
