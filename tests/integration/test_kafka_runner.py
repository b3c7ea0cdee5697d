"""KafkaRunner without Faust: assignment and revocation while commits fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import LogError, NotOwner
from oncue.log import Log, Topic
from oncue.protocol.codec import encode
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.stateful.handover import hand_over, read_states
from oncue.rules.stateful.kafka_runner import KafkaRunner
from tests.integration.embedded_site import PARTITIONS, Endpoints, Site, record, rule, site_in

KEYS = 7


class FlushingFence:
    """A fence whose claim waits for commits in flight, as on Kafka."""

    def __init__(self, log: Log) -> None:
        self._flush = log.commit
        self.claimed: list[int] = []

    async def claim(self, group: str, topic: str, partition: int) -> None:
        await self._flush(group, [], [])
        self.claimed.append(partition)


class StreamWorker:
    """A minimal stream worker: it assigns, restores and consumes like Faust."""

    def __init__(self, site: Site) -> None:
        self.site, self.fence = site, FlushingFence(site.log)
        self.runner = KafkaRunner(site.log, self.fence, Endpoints(), lambda: site.engine.active_rules, "w")

    async def assign(self, *numbers: int) -> None:
        await hand_over(self.site.log, self.fence, self.site.folder / "windows.db")
        self.fence.claimed.clear()
        await self.runner.claim(numbers)
        for number, table in (await read_states(self.site.log, numbers)).items():
            for key, value in table.entries():
                self.runner.restore(number, encode(key), value)
        await self.runner.check()
        self.runner.ready()

    async def consume(self) -> None:
        """Consume from the offsets in the tables, until cancelled."""
        start = {(MATCHES, number): offset for number, offset in self.runner.positions().items()}
        reader = self.site.log.read([MATCHES], start=start)
        try:
            async for batch in reader:
                for offset, r in zip(batch.offsets, batch.records, strict=True):
                    await self.runner.enqueue(batch.partition, offset, r)
        finally:
            await reader.close()

    async def caught_up(self) -> bool:
        if any((await self.site.log.lag("rules", ["oncue.events"])).values()):
            return False
        ends = await self.site.log.end_offsets([MATCHES])
        done = {number: part.table.progress.next for number, part in self.runner.parts.items()}
        return all(done.get(n, 0) >= end for (_, n), end in ends.items())


@contextlib.asynccontextmanager
async def running(*parts: Awaitable[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def with_worker(folder: Path, body: Callable[[Site, StreamWorker], Awaitable[None]]) -> None:
    async def run() -> None:
        async with site_in(folder) as site:
            await site.log.ensure({WINDOWS: Topic(partitions=PARTITIONS, compact=True)})
            worker = StreamWorker(site)
            async with running(site.engine.run(), worker.runner.run()):
                await body(site, worker)
                await worker.runner.close()

    asyncio.run(run())


async def counted_once(site: Site, worker: StreamWorker, accepted: int) -> None:
    counts = Counter(n for args in await site.arguments() for n in args["n"])
    assert set(counts.values()) <= {1}
    assert sum(counts.values()) + sum(s.events for s in worker.runner.summary().values()) == accepted


def test_a_failed_commit_is_retried_and_a_refused_one_releases_the_partition(tmp_path: Path) -> None:
    async def body(site: Site, worker: StreamWorker) -> None:
        site.deploy(rule(batch={"key": "${data.k}", "count": 5}))
        real, failures = site.log.commit, [LogError("no leader"), LogError("no leader"), NotOwner("another has it")]

        async def commit(group: str, *rest: Any, **more: Any) -> Any:
            if group == "stream" and failures:
                raise failures.pop(0)
            return await real(group, *rest, **more)

        await worker.assign(*range(PARTITIONS))
        site.log.commit = commit  # type: ignore[method-assign]
        async with running(worker.consume()):
            await site.emit(*(record(n, k=n % KEYS) for n in range(100)))

            async def released() -> bool:
                return not failures and any(not part.ready for part in worker.runner.parts.values())

            await site.until(released)
        await worker.assign(*range(PARTITIONS))
        async with running(worker.consume()):
            await site.until(worker.caught_up)
        await counted_once(site, worker, 100)
        assert sorted(worker.fence.claimed) == list(range(PARTITIONS))

    with_worker(tmp_path, body)


def test_a_partition_revoked_during_a_commit_is_consistent_when_reassigned(tmp_path: Path) -> None:
    """The commit completes after the partition was revoked; the changelog has it."""

    async def body(site: Site, worker: StreamWorker) -> None:
        site.deploy(rule(batch={"key": "${data.k}", "count": 5}))
        real, begun, go_on = site.log.commit, asyncio.Event(), asyncio.Event()
        left: list[asyncio.Task[Any]] = []

        async def slowly(*given: Any, **more: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await real(*given, **more)

        async def commit(group: str, *rest: Any, **more: Any) -> Any:
            if group != "stream" or go_on.is_set():
                return await real(group, *rest, **more)
            left.append(asyncio.create_task(slowly(group, *rest, **more)))
            return await asyncio.shield(left[-1])

        await worker.assign(*range(PARTITIONS))
        site.log.commit = commit  # type: ignore[method-assign]
        async with running(worker.consume()):
            await site.emit(*(record(n, k=n % KEYS) for n in range(60)))
            await begun.wait()
            await worker.runner.release(range(PARTITIONS))
        go_on.set()
        await asyncio.gather(*left)
        await worker.assign(*range(PARTITIONS))
        async with running(worker.consume()):
            await site.emit(*(record(n, k=n % KEYS) for n in range(60, 100)))
            await site.until(worker.caught_up)
        await counted_once(site, worker, 100)

    with_worker(tmp_path, body)


def test_a_tick_is_appended_without_traffic_and_a_full_queue_blocks(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("oncue.rules.stateful.kafka_runner.MAX_PENDING", 3)
    monkeypatch.setattr("oncue.rules.stateful.kafka_runner.STEP", 2)

    async def body(site: Site, worker: StreamWorker) -> None:
        site.deploy(rule(batch={"count": 100, "wait": "200ms"}))
        await worker.assign(*range(PARTITIONS))
        async with running(worker.consume()):
            await site.emit(*(record(n) for n in range(20)))

            async def fired() -> bool:
                return sum(len(args["n"]) for args in await site.arguments()) == 20

            await site.until(fired)
        assert max(len(part.inbox) for part in worker.runner.parts.values()) == 0

    with_worker(tmp_path, body)


def test_states_that_were_not_read_are_not_taken_for_those_of_servers(tmp_path: Path) -> None:
    async def body(site: Site, worker: StreamWorker) -> None:
        await worker.assign(0, 1)
        await worker.runner.claim((0, 1))  # a rebalance, as after a pause of the process
        with pytest.raises(LogError, match="states of the partitions 0, 1 were not read"):
            worker.runner.ready()

    with_worker(tmp_path, body)
