"""`oncue stream` on a real Kafka: killed, paused, shared between workers.

No event is lost, and none is counted twice.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.log import Record
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION
from oncue.protocol.topics import MATCHES
from oncue.rules.operators.base import AnyOperator
from oncue.rules.operators.batch import BatchOperator
from oncue.rules.operators.catalog import keyed_operator
from oncue.rules.operators.dedupe import DedupeOperator
from oncue.rules.operators.records import BufferedEvent, Match, MatchesRecord, Tick
from tests.integration.embedded_site import Site, record, rule, site_in
from tests.integration.stream_site import PARTITIONS, StreamSite, stream_site

Kafka = tuple[str, str]
KEYS = 7


def with_site(kafka: Kafka, folder: Path, body: Callable[[StreamSite], Awaitable[None]]) -> None:
    async def run() -> None:
        async with stream_site(kafka[0], folder) as site:
            await body(site)

    asyncio.run(run())


@pytest.mark.timeout(240)
def test_kill_9_again_and_again_counts_each_event_once(kafka: Kafka, tmp_path: Path) -> None:
    chance = random.Random(11)

    async def body(site: StreamSite) -> None:
        await site.deploy(rule(batch={"key": "${data.k}", "count": 5, "wait": "1h"}))
        accepted = 0

        async def burst(count: int) -> None:
            nonlocal accepted
            first, accepted = accepted, accepted + count
            await site.emit(*(record(n, k=n % KEYS) for n in range(first, accepted)))

        for _ in range(5):
            worker = await site.start()
            feeding = asyncio.create_task(worker.placed())
            await burst(chance.randrange(1, 400))  # while it starts
            await feeding
            for _ in range(chance.randrange(1, 12)):
                await burst(chance.randrange(1, 200))
            await worker.kill()
        await (await site.start()).placed()
        await burst(50)
        await site.settled()
        fired = await site.fired()
        await site.counted_once(accepted)
        assert all(len(args["n"]) == 5 and len({n % KEYS for n in args["n"]}) == 1 for args in fired.values())
        assert not await site.dead()

    with_site(kafka, tmp_path, body)


@pytest.mark.timeout(240)
def test_workers_share_the_partitions_and_take_over_the_windows_of_a_killed_one(kafka: Kafka, tmp_path: Path) -> None:
    async def body(site: StreamSite) -> None:
        await site.deploy(rule(batch={"key": "${data.k}", "count": 3}))
        one = await site.start()
        assert await one.placed() == list(range(PARTITIONS))
        two = await site.start()
        shared = [await two.placed(), await one.placed()]
        assert sorted(chain(*shared)) == list(range(PARTITIONS))
        assert all(shared)
        await site.emit(*(record(n, k=n % KEYS) for n in range(2 * KEYS)))
        await site.settled()
        assert await site.waiting() == list(range(2 * KEYS))
        await two.kill()
        began = asyncio.get_running_loop().time()
        assert await one.placed() == list(range(PARTITIONS))
        took_s = asyncio.get_running_loop().time() - began
        await site.emit(*(record(n, k=n % KEYS) for n in range(2 * KEYS, 3 * KEYS)))
        await site.settled()
        await site.counted_once(3 * KEYS)
        assert len(await site.fired()) == KEYS
        print(f"taken over {took_s:.1f} s after kill -9")
        assert await one.stop() == 0

    with_site(kafka, tmp_path, body)


@pytest.mark.timeout(240)
def test_a_worker_paused_past_its_session_cannot_write(kafka: Kafka, tmp_path: Path) -> None:
    """It is paused with matches read; another worker takes over and fences it."""

    async def body(site: StreamSite) -> None:
        await site.deploy(rule(batch={"key": "${data.k}", "count": 5}))
        zombie = await site.start()
        await zombie.placed()
        accepted = 0
        for _ in range(5):
            await site.emit(*(record(n, k=n % KEYS) for n in range(accepted, accepted + 400)))
            accepted += 400
        zombie.signal(signal.SIGSTOP)
        other = await site.start()
        assert await other.placed() == list(range(PARTITIONS))
        await site.emit(*(record(n, k=n % KEYS) for n in range(accepted, accepted + 400)))
        accepted += 400
        await site.settled()
        zombie.signal(signal.SIGCONT)
        shared = [await other.placed(), await zombie.placed()]
        assert sorted(chain(*shared)) == list(range(PARTITIONS))
        await site.emit(*(record(n, k=n % KEYS) for n in range(accepted, accepted + 400)))
        accepted += 400
        await site.settled()
        await site.counted_once(accepted)

    with_site(kafka, tmp_path, body)


@pytest.mark.timeout(120)
def test_a_window_closes_by_time_without_traffic_and_by_a_new_operator_at_once(kafka: Kafka, tmp_path: Path) -> None:
    async def body(site: StreamSite) -> None:
        slow, quick = rule("slow", batch={"count": 10}), rule("quick", batch={"count": 10, "wait": "1s"})
        await site.deploy(slow, quick)
        worker = await site.start()
        await worker.placed()
        await site.emit(*(record(n) for n in range(4)))

        async def one() -> bool:
            return len(await site.fired()) == 1

        await site.until(one, "the window with a `wait` has fired")
        await site.deploy(rule("slow", batch={"count": 9}), quick, version=2)

        async def two() -> bool:
            return len(await site.fired()) == 2

        await site.until(two, "the window of the changed operator has fired")
        assert [args["n"] for args in (await site.fired()).values()] == [[0, 1, 2, 3]] * 2
        assert await worker.stop() == 0

    with_site(kafka, tmp_path, body)


@pytest.mark.timeout(120)
def test_a_duplicate_is_recognized_after_a_restart(kafka: Kafka, tmp_path: Path) -> None:
    async def body(site: StreamSite) -> None:
        await site.deploy(rule(args={"n": "${data.n}"}, dedupe={"key": "${data.k}", "ttl": "1h"}))
        for round_ in range(2):
            worker = await site.start()
            await worker.placed()
            await site.emit(*(record(10 * round_ + n, k=n % 3) for n in range(6)))
            await site.settled()
            assert sorted(args["n"] for args in (await site.fired()).values()) == [0, 1, 2]
            assert await worker.stop() == 0

    with_site(kafka, tmp_path, body)


OPERATORS: dict[str, tuple[AnyOperator, ...]] = {
    "count": (BatchOperator("${data.k}", count=3),),
    "bytes": (BatchOperator("${data.k}", size_bytes=60),),
    "wait": (BatchOperator("${data.k}", wait_ms=20),),
    "both": (DedupeOperator("${data.k}", 25), BatchOperator("", count=3, wait_ms=50)),
}


def matches_and_ticks(chance: random.Random, rule_name: str, at_ms: int) -> list[MatchesRecord]:
    found: list[MatchesRecord] = []
    for n in range(60):
        at_ms += chance.choice([0, 0, 1, 5, 12, 40])
        if chance.random() < 0.15:
            found.append(Tick(VERSION, at_ms + chance.randrange(60)))
            continue
        specs = OPERATORS[rule_name]
        stages = tuple(keyed_operator(s, chance.choice("abc") if s.key else "") for s in specs)
        row = msgspec.msgpack.encode([n])
        held = BufferedEvent(-1, "/s", f"{rule_name}-{chance.randrange(n + 1)}", row, chance.randrange(30))
        found.append(Match(VERSION, rule_name, "f", 1, at_ms, stages, ("data.n",), held))
    return found


@pytest.mark.timeout(240)
def test_both_runners_make_the_same_tasks_from_the_same_matches_and_ticks(kafka: Kafka, tmp_path: Path) -> None:
    """One partition a rule; workers are killed between.

    Times are far ahead, so that neither runner adds a tick of its own.
    """
    chance = random.Random(5)
    rules = [
        rule("count", batch={"key": "${data.k}", "count": 3}),
        rule("bytes", batch={"key": "${data.k}", "bytes": 60}),
        rule("wait", batch={"key": "${data.k}", "wait": "20ms"}),
        rule("both", dedupe={"key": "${data.k}", "ttl": "25ms"}, batch={"count": 3, "wait": "50ms"}),
    ]
    streams = [matches_and_ticks(chance, name, 5_000_000_000_000) for name in OPERATORS]
    embedded: dict[bytes, Any] = {}

    async def on_sqlite(site: Site) -> None:
        site.deploy(*rules)
        for part, stream in enumerate(streams):
            await site.log.append(MATCHES, [Record(encode(r)) for r in stream], part)
        async with site.running():
            await site.settled()
        for task, args in zip(await site.tasks(), await site.arguments(), strict=True):
            embedded[task.id] = args

    async def first() -> None:
        async with site_in(tmp_path / "embedded") as site:
            await on_sqlite(site)

    (tmp_path / "embedded").mkdir()
    asyncio.run(first())

    async def body(site: StreamSite) -> None:
        await site.deploy(*rules)
        for cut in (20, 40, 60):
            worker = await site.start()
            await worker.placed()
            for part, stream in enumerate(streams):
                await site.log.append(MATCHES, [Record(encode(r)) for r in stream[cut - 20 : cut]], part)
            if cut == 60:
                await site.settled()
            await worker.kill()
        assert await site.fired() == embedded
        assert len(embedded) > 20

    with_site(kafka, tmp_path, body)
