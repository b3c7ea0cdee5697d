"""An embedded log with an engine and an EmbeddedRunner; also as a process.

python -m tests.integration.embedded_site FOLDER RULES_JSON runs until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from oncue.log import Log, Record, Topic, open_log
from oncue.protocol import cloudevents, payload
from oncue.protocol.codec import decode
from oncue.protocol.records import VERSION, DeadLetter, Deployment, Event, RuleSwitch, TaskFrame, TaskRecord
from oncue.protocol.topics import DEAD, EVENTS, MATCHES, TaskTopics
from oncue.rules.engine import Engine
from oncue.rules.stateful.embedded_runner import EmbeddedRunner

PARTITIONS = 4


class Endpoints:
    def is_revoked(self, name: str, owner: str) -> bool:
        return False

    def tasks_topic(self, endpoint: str) -> str:
        return TaskTopics().of(endpoint)

    def endpoint_id(self, name: str, owner: str) -> str | None:
        return {"local": "e1", "polaris": "e2"}.get(name)


def deployed(rules: list[dict[str, Any]], version: int = 1) -> Deployment:
    return Deployment(VERSION, "f", version, "ann", json.dumps({"rules": rules}), {"f": "hash-f", "g": "hash-g"})


def rule(name: str = "r", args: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "on": {"type": "t"}, "run": {"function": "f", "args": args or {"n": "${each.data.n}"}}} | more


def record(number: int, **data: Any) -> Record:
    event = Event(id=str(number), source="/s", type="t", data={"n": number} | data)
    value, headers = cloudevents.to_record(event)
    return Record(value, headers=headers)


class Site:
    def __init__(self, log: Log, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.clock_ms: Callable[[], int] | None = None
        self.history: dict[int, Deployment] = {}
        self.stored: list[bytes] = []
        self.engine = Engine(log, Endpoints())
        self.runner = self.new_runner()

    def new_runner(self) -> EmbeddedRunner:
        more = {"clock_ms": self.clock_ms} if self.clock_ms else {}
        return EmbeddedRunner(
            self.log, Endpoints(), self.folder / "windows.db", lambda: self.engine.active_rules,
            history=self._then, offload=self._offload, judge=self.engine.judge, **more,
        )  # fmt: skip

    async def _then(self, label: str, version: int) -> Deployment | None:
        return self.history.get(version)

    async def _offload(self, packed: bytes) -> bytes:
        self.stored.append(packed)
        return payload.pack_ref(payload.Ref("0" * 64, len(packed)))

    def deploy(self, *rules: dict[str, Any], version: int = 1, off: bool = False) -> None:
        d = self.history[version] = deployed(list(rules), version)
        self.engine.update([d], [RuleSwitch(VERSION, r["name"], False, "ann") for r in rules] if off else ())
        self.runner.wake()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run engine and runner; a failure of one of them fails the test."""
        parts = [asyncio.create_task(self.engine.run()), asyncio.create_task(self.runner.run())]
        try:
            yield
        finally:
            for part in parts:
                part.cancel()
            for end in await asyncio.gather(*parts, return_exceptions=True):
                if not isinstance(end, asyncio.CancelledError):
                    raise end
            await self.runner.close()
            await self.engine.close()

    async def emit(self, *records: Record) -> None:
        await self.log.append(EVENTS, records)

    async def until(self, done: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(30):
            while not (found := await done()):  # noqa: ASYNC110 - states of others are in files
                await asyncio.sleep(0.01)
        return found

    async def settled(self) -> None:
        """Wait until engine and runner have processed all records of the log."""

        async def done() -> bool:
            if any((await self.log.lag("rules", [EVENTS])).values()):
                return False
            ends = await self.log.end_offsets([MATCHES])
            store = self.runner._store
            return store is not None and all(store.parts.get(p, (0, 0))[0] >= end for (_, p), end in ends.items())

        await self.until(done)

    async def tasks(self, endpoint: str = "e1") -> list[TaskRecord]:
        frames = [decode(TaskFrame, r.value) for r in await all_of(self.log, TaskTopics().of(endpoint))]
        return [task for frame in frames for task in frame.tasks]

    async def arguments(self) -> list[Any]:
        return [(args or kwargs) for args, kwargs in (payload.unpack_args(t.args) for t in await self.tasks())]

    async def dead(self) -> list[DeadLetter]:
        return [decode(DeadLetter, r.value) for r in await all_of(self.log, DEAD)]


async def all_of(log: Log, topic: str) -> list[Record]:
    """Return all records of the topic."""
    ends = {key: end for key, end in (await log.end_offsets([topic])).items() if end}
    reader, found = log.read([topic], start="earliest"), []
    while ends:
        for batch in await reader.next():
            found += batch.records
            if batch.next_offset >= ends.get((topic, batch.partition), 0):
                ends.pop((topic, batch.partition), None)
    await reader.close()
    return found


@contextlib.asynccontextmanager
async def site_in(folder: Path) -> AsyncIterator[Site]:
    log = await open_log(f"sqlite://{folder / 'log'}")
    try:
        await log.ensure({MATCHES: Topic(partitions=PARTITIONS)})
        yield Site(log, folder)
    finally:
        await log.close()


async def _run(folder: Path, rules: list[dict[str, Any]]) -> None:
    async with site_in(folder) as site:
        site.deploy(*rules)
        async with site.running():
            print("up", flush=True)
            loop = asyncio.get_running_loop()
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                first, last = map(int, line.split())
                await site.emit(*(record(n, k=n % 7) for n in range(first, last)))
                print(last, flush=True)


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), json.loads(sys.argv[2])))
