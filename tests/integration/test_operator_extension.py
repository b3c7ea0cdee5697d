"""The operator of docs/extending.md works in every runner, in `explain` and in the tests of a rule file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.errors import RuleFileError
from oncue.protocol import cloudevents
from oncue.protocol.records import Event
from oncue.protocol.topics import MATCHES
from oncue.rules.operators.catalog import CATALOGUE
from oncue.rules.parsing.rule_file import parse
from oncue.rules.stateful.changelog_reader import ChangelogReader
from oncue.rules.stateful.handover import read_states
from oncue.rules.stateful.kafka_runner import KafkaRunner
from oncue.rules.testing.runner import run_tests
from tests.extending import module
from tests.integration.embedded_site import PARTITIONS, Endpoints, record, rule, site_in
from tests.integration.stream_site import stream_site
from tests.integration.test_kafka_runner import running

Newest = module("newest").Newest
RULE = rule(args={"n": "${data.n}"}, newest={"key": "${data.k}", "every": "10m"})
NEWEST = [{"n": 7}, {"n": 8}, {"n": 9}]  # of the keys 1, 2 and 0


@pytest.fixture(autouse=True)
def newest() -> Iterator[None]:
    with CATALOGUE.extended(Newest):
        yield


def events() -> list[Any]:
    return [record(n, k=n % 3) for n in range(10)]


def event(n: int) -> Event:
    return cloudevents.from_record(record(n, k=n % 3).value)


class Clock:
    """Clock of a runner, ahead of the clock by which events are accepted."""

    ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


def test_the_embedded_runner_fires_the_newest_event_of_each_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            site.clock_ms = clock = Clock()
            site.runner = site.new_runner()
            site.deploy(RULE)
            entry = site.engine.active_rules.entries["r"]
            async with site.running():
                await site.emit(*events())
                await site.settled()
                summary = await site.runner.summary()
                preview = await site.runner.preview(entry, event(10))
                assert await site.arguments() == []
                clock.ahead_ms = 700_000
                site.runner.wake()
                await site.until(lambda: _fired(site, 3))
            assert summary["r"].windows == summary["r"].events == 3
            assert (preview.passes, preview.why) == (True, "it replaces the event that waits")
            assert sorted(await site.arguments(), key=lambda a: a["n"]) == NEWEST
            assert not await site.dead()

    asyncio.run(main())


@pytest.mark.timeout(120)
def test_the_kafka_runner_fires_the_newest_event_of_each_key(kafka: tuple[str, str], tmp_path: Path) -> None:
    async def main() -> None:
        async with stream_site(kafka[0], tmp_path) as site:
            clock = Clock()
            await site.deploy(RULE)
            entry = site.engine.active_rules.entries["r"]
            runner = KafkaRunner(site.log, site.log, Endpoints(), lambda: site.engine.active_rules, "w", clock_ms=clock)  # type: ignore[arg-type]
            await runner.claim(range(PARTITIONS))
            for number, table in (await read_states(site.log)).items():
                runner.restored(number, table)
            await runner.check()
            runner.ready()
            reader = site.log.read([MATCHES], start={(MATCHES, n): at for n, at in runner.positions().items()})

            async def feed() -> None:
                async for batch in reader:
                    for offset, r in zip(batch.offsets, batch.records, strict=True):
                        await runner.enqueue(batch.partition, offset, r)

            async with running(runner.run(), feed()):
                await site.emit(*events())

                async def folded() -> bool:
                    return runner.events == 10

                await site.until(folded, "all events are folded")
                summary = runner.summary()
                preview = await ChangelogReader(site.log, PARTITIONS).preview(entry, event(10))
                assert not await site.tasks()
                clock.ahead_ms = 700_000
                runner.wake()

                async def fired() -> bool:
                    return len(await site.tasks()) == 3

                await site.until(fired, "each key has fired")
            await reader.close()
            await runner.close()
            assert summary["r"].windows == summary["r"].events == 3
            assert (preview.passes, preview.why) == (True, "it replaces the event that waits")
            assert sorted((await site.fired()).values(), key=lambda a: a["n"]) == NEWEST
            assert not await site.dead()

    asyncio.run(main())


def test_rule_file_tests_run_it_on_the_virtual_clock(tmp_path: Path) -> None:
    timed = [(0, 1), (5, 2), (14, 3), (30, 4)]
    given = "".join(f"{{at: {at}s, event: {{type: t, data: {{n: {n}}}}}}}, " for at, n in timed)
    text = f"""
rules:
  - name: r
    on: {{type: t}}
    newest: {{every: 10s}}
    run: {{function: f, args: {{n: "${{data.n}}"}}}}
    tests:
      - {{events: [{given}], expect: {{args: [{{n: 2}}, {{n: 3}}, {{n: 4}}]}}}}
"""
    (result,) = run_tests(parse(text, "r.yaml"), tmp_path)
    assert (result.passed, result.why) == (True, "it fires 3 times: at 10s for 1, at 24s for 1, at 40s for 1")


def test_a_mistake_is_reported_with_its_position() -> None:
    text = "rules:\n- name: r\n  on: {type: t}\n  newest: {every: 10s, kye: x}\n  run: {function: f}\n"
    with pytest.raises(RuleFileError) as e:
        parse(text, "r.yaml")
    assert (e.value.message, e.value.remedy) == ("`newest` has no key 'kye'", "did you mean 'key'?")
    assert (e.value.details["line"], e.value.details["column"]) == (4, 24)


async def _fired(site: Any, count: int) -> bool:
    return len(await site.tasks()) == count
