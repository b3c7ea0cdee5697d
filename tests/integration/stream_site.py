"""A log on Kafka with an engine, and `oncue stream` processes to kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from oncue.config import Settings
from oncue.log import Log, Record, Topic, open_log
from oncue.protocol import payload
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, DeadLetter, EndpointRecord, TaskFrame, TaskRecord
from oncue.protocol.topics import DEAD, EVENTS, MATCHES, REGISTRY, TaskTopics
from oncue.rules.engine import Engine
from oncue.rules.operators.records import Match, MatchesRecord
from oncue.rules.stateful.changelog_states import ChangelogStates
from oncue.rules.stateful.handover import hand_over, read_states
from oncue.rules.stateful.topics import ensure_stream
from tests.integration.embedded_site import all_of, deployed

PATIENCE_S = 60.0
PARTITIONS = 4


class Worker:
    """One `oncue stream` process."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: Path) -> None:
        self.process, self._stderr = process, stderr

    async def placed(self) -> list[int]:
        """Return its partitions, once it reports them next."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await self.process.stdout.readline()).decode()
        assert "is up" in line, line + self.stderr()
        numbers = line.rpartition(": ")[2].split(",")
        return [int(n) for n in numbers if n.strip().isdigit()]

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")[-3000:]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


class StreamSite:
    def __init__(self, log: Log, url: str, folder: Path, environ: Mapping[str, str]) -> None:
        self.log, self.url, self.folder, self._environ = log, url, folder, environ
        self.engine = Engine(log, self)
        self.workers: list[Worker] = []

    def is_revoked(self, name: str, owner: str) -> bool:
        return False

    def tasks_topic(self, endpoint: str) -> str:
        return TaskTopics().of(endpoint)

    def endpoint_id(self, name: str, owner: str) -> str | None:
        return "e1"

    async def deploy(self, *rules: dict[str, Any], version: int = 1) -> None:
        """Deploy for this engine, and for the workers in the registry."""
        d = deployed(list(rules), version)
        endpoint = EndpointRecord(VERSION, "e1", "local", d.owner, b"")
        entries = [("endpoint:e1", endpoint), (f"deployment:{d.label}@{version}", d)]
        await self.log.append(REGISTRY, [Record(encode(entry), key.encode()) for key, entry in entries])
        self.engine.update([d])

    async def start(self) -> Worker:
        stderr = self.folder / f"worker{len(self.workers)}.err"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ONCUE_")} | self._environ
        with stderr.open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "oncue", "stream", "--log", self.url, "--data", str(self.folder / "data"),
                stdout=asyncio.subprocess.PIPE, stderr=err, stdin=asyncio.subprocess.DEVNULL, env=kept,
            )  # fmt: skip
        worker = Worker(process, stderr)
        self.workers.append(worker)
        return worker

    async def emit(self, *records: Record) -> None:
        await self.log.append(EVENTS, records)

    async def until(self, done: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Poll until `done`, for what other processes do."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while not (found := await done()):
            assert asyncio.get_running_loop().time() < end, f"{what}\n" + "\n".join(w.stderr() for w in self.workers)
            await asyncio.sleep(0.05)
        return found

    async def settled(self) -> None:
        """Wait until engine and workers have processed all records of the log."""

        async def matched() -> bool:
            return not any((await self.log.lag("rules", [EVENTS])).values())

        await self.until(matched, "the engine has seen all events")
        ends = await self.log.end_offsets([MATCHES])

        async def folded() -> bool:
            # Behind a partition's last record there may be the mark of its transaction.
            done = {number: table.progress.next for number, table in (await self.tables()).items()}
            last = await self._last(ends)
            return all(done.get(number, 0) > offset for number, offset in last.items())

        await self.until(folded, "the workers have seen all matches")

    async def _last(self, ends: dict[tuple[str, int], int]) -> dict[int, int]:
        """The offset of each partition's last record."""
        left, found = {place: end for place, end in ends.items() if end}, {}
        reader = self.log.read([MATCHES], start="earliest")
        while left:
            for batch in await reader.next():
                for offset in batch.offsets:
                    found[batch.partition] = offset
                if batch.next_offset >= left.get((MATCHES, batch.partition), 0):
                    left.pop((MATCHES, batch.partition), None)
        await reader.close()
        return found

    async def tables(self) -> dict[int, ChangelogStates]:
        """Return the states in the changelog."""
        return await read_states(self.log)

    async def waiting(self) -> list[int]:
        """Return the numbers of the events in open windows."""
        found = [table.buffered(where) for table in (await self.tables()).values() for where in table.open_windows()]
        return sorted(int(event.id) for window in found for event in window)

    async def counted_once(self, accepted: int) -> None:
        """Check that each of `count` events is in one fired batch or open window."""
        waiting = await self.waiting()
        numbers = Counter([n for args in (await self.fired()).values() for n in args["n"]] + waiting)
        twice, missing = [n for n, count in numbers.items() if count > 1], set(range(accepted)) - set(numbers)
        assert not twice, twice
        assert not missing, (sorted(missing), waiting, await self._matches(missing), [w.stderr() for w in self.workers])
        assert len(numbers) == accepted

    async def _matches(self, numbers: set[int]) -> list[Any]:
        """Return the matches' positions in the log and each partition's progress."""
        found: list[Any] = [(n, table.progress) for n, table in (await self.tables()).items()]
        reader, left = self.log.read([MATCHES], start="earliest"), await self.log.end_offsets([MATCHES])
        while any(left.values()):
            for batch in await reader.next():
                for offset, r in zip(batch.offsets, batch.records, strict=True):
                    content = decode(MatchesRecord, r.value)  # type: ignore[arg-type]
                    if isinstance(content, Match) and int(content.event.id) in numbers:
                        found.append((batch.partition, offset, content.event.id, batch.offsets[0], batch.offsets[-1]))
                if batch.next_offset >= left.get((MATCHES, batch.partition), 0):
                    left[MATCHES, batch.partition] = 0
        await reader.close()
        return found

    async def tasks(self) -> list[TaskRecord]:
        frames = [decode(TaskFrame, r.value) for r in await all_of(self.log, TaskTopics().of("e1"))]
        return [task for frame in frames for task in frame.tasks]

    async def fired(self) -> dict[bytes, Any]:
        """Return task id -> arguments. Repeated tasks must have the same arguments."""
        found: dict[bytes, Any] = {}
        for task in await self.tasks():
            args, kwargs = payload.unpack_args(task.args)
            assert found.setdefault(task.id, args or kwargs) == (args or kwargs)
        return found

    async def dead(self) -> list[DeadLetter]:
        return [decode(DeadLetter, r.value) for r in await all_of(self.log, DEAD)]


@contextlib.asynccontextmanager
async def stream_site(address: str, folder: Path, **kafka: str) -> AsyncIterator[StreamSite]:
    """Yield a site whose engine runs; end all workers afterwards.

    `kafka`: client settings of the workers and of the log here.
    """
    url = f"kafka://{address}?prefix=s{uuid.uuid4().hex[:10]}."
    settings = Settings(matches_partitions=PARTITIONS, **kafka)  # type: ignore[arg-type]
    log = await open_log(url, settings)
    try:
        await ensure_stream(log, settings)
        # Here, because a client's metadata has topics that others create only half a minute later.
        await log.ensure({TaskTopics().of("e1"): Topic(), DEAD: Topic(), REGISTRY: Topic(compact=True)})
        assert await hand_over(log, log, folder / "windows.db") == []  # type: ignore[arg-type]
        site = StreamSite(log, url, folder, {f"ONCUE_{name.upper()}": value for name, value in kafka.items()})
        engine = asyncio.create_task(site.engine.run())
        try:
            yield site
        finally:
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)
            for worker in site.workers:
                await worker.kill()
    finally:
        await log.close()
