"""EmbeddedRunner on the real embedded log, with engine and SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from oncue.clocks.process import now_ms
from oncue.errors import DiskFull, LogError
from oncue.log import Record, Topic, open_log
from oncue.protocol import cloudevents
from oncue.protocol.codec import decode
from oncue.protocol.topics import EVENTS, MATCHES
from oncue.rules.operators.records import MatchesRecord, Tick
from oncue.rules.stateful import embedded_runner, sqlite_states
from oncue.rules.stateful.fold import MARGIN_MS, TICK_WINDOWS
from oncue.rules.stateful.sqlite_states import SqliteStates
from tests.integration.embedded_site import PARTITIONS, Site, all_of, record, rule, site_in

ROOT = Path(__file__).parents[2]


def with_site(folder: Path, body: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        async with site_in(folder) as site:
            await body(site)

    asyncio.run(main())


def test_a_batch_by_count_fires_once_with_all_its_events(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        args = {
            "ns": "${each.data.n}", "first": "${first.data.n}", "last": "${last.data.path | stem}",
            "count": "${count}", "key": "${key}", "text": "${key}: ${count}", "fixed": 1,
        }  # fmt: skip
        site.deploy(rule(args=args, batch={"key": "${data.scan}", "count": 3}, expires="1h", retry={"max": 2}))
        async with site.running():
            await site.emit(*(record(n, scan="ab"[n % 2], path=f"/x/{n}.h5") for n in range(8)))
            await site.settled()
        found = sorted(await site.arguments(), key=lambda a: a["key"])
        assert found == [
            {"ns": [0, 2, 4], "first": 0, "last": "4", "count": 3, "key": "a", "text": "a: 3", "fixed": 1},
            {"ns": [1, 3, 5], "first": 1, "last": "5", "count": 3, "key": "b", "text": "b: 3", "fixed": 1},
        ]
        assert {t.event for t in await site.tasks()} == {("/s", "0"), ("/s", "1")}
        (info,) = site.engine.rules()
        assert (info.fired, info.memory) == (2, "batch by ${data.scan} of 3 events")
        assert not await site.dead()

    with_site(tmp_path, body)


def test_a_deadline_is_told_at_once_although_its_firing_waits_or_is_dropped(tmp_path: Path) -> None:
    async def overdue(site: Site) -> list[Any]:
        events = [cloudevents.from_record(r.value, r.headers) for r in await all_of(site.log, EVENTS)]
        return sorted(e.data["key"] for e in events if e.type == "oncue.overdue")

    async def body(site: Site) -> None:
        join = {"key": "${data.k}", "count": 2, "deadline": "100ms", "then": "fire"}
        site.deploy(
            rule("skips", join=join, limit={"running": 1, "overlap": "skip"}),
            rule("waits", join=join, mode="paused"),
        )
        async with site.running():
            await site.emit(record(1, k="a"), record(2, k="b"))
            async with asyncio.timeout(30):
                while len(await overdue(site)) < 4:  # noqa: ASYNC110 - a record of the log
                    await asyncio.sleep(0.01)
            await site.settled()
        assert await overdue(site) == ["a", "a", "b", "b"]
        assert len(await site.tasks()) == 1

    with_site(tmp_path, body)


def test_operators_keep_their_states_while_their_rule_is_paused(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        dedupe, args = {"key": "${data.k}", "ttl": "1h"}, {"n": "${data.n}"}
        async with site.running():
            for version, more in enumerate(({}, {"mode": "paused"}, {}), 1):
                site.deploy(rule(args=args, dedupe=dedupe, **more), version=version)
                again = [record(100 * version + n, k=n) for n in range(8)]
                await site.emit(*again, record(100 * version + 8, k=f"new {version}"))
                await site.settled()
            await site.until(lambda: at_least(site, 11))
            await site.settled()
        assert sorted(a["n"] for a in await site.arguments()) == [*range(100, 109), 208, 308]

    async def at_least(site: Site, tasks: int) -> bool:
        return len(await site.tasks()) >= tasks

    with_site(tmp_path, body)


def test_a_join_in_shadow_counts_only_what_would_have_run(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(join={"key": "${data.k}", "count": 2, "deadline": "100ms"}, mode="shadow"))
        async with site.running():
            await site.emit(record(1, k="a"), record(2, k="b"), record(3, k="b"))
            await site.settled()
            while (await site.runner.summary()).get("r"):  # noqa: ASYNC110 - states of others are in files
                await asyncio.sleep(0.01)
            await site.settled()
        (info,) = site.engine.rules()
        assert (info.shadow, info.fired, len(await site.dead())) == (1, 0, 0)

    with_site(tmp_path, body)


def test_dedupe_passes_the_first_event_and_counts_the_others(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(args={"n": "${data.n}"}, dedupe={"key": "${data.path}", "ttl": "10m"}))
        async with site.running():
            await site.emit(*(record(n, path=f"/{n % 2}") for n in range(6)))
            await site.settled()
            entry = site.engine.active_rules.entries["r"]
            seen = await site.runner.preview(entry, cloudevents.from_record(record(9, path="/1").value))
            fresh = await site.runner.preview(entry, cloudevents.from_record(record(9, path="/2").value))
        assert sorted(a["n"] for a in await site.arguments()) == [0, 1]
        (info,) = site.engine.rules()
        assert (info.fired, info.suppressed) == (2, 4)
        assert not seen.passes
        assert "the key /1 fired 0 s ago, ttl 10m, 2 suppressed since" in seen.why
        assert fresh.passes

    with_site(tmp_path, body)


def test_keys_without_effect_are_forgotten_as_fast_as_others_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_states, embedded_runner):
        monkeypatch.setattr(module, "FORGET_ROWS", 2)
    monkeypatch.setattr(embedded_runner, "FORGET_MORE_S", 0.0)
    kept = "SELECT count(*) FROM state"

    async def body(site: Site) -> None:
        hour_ago = now_ms() - MARGIN_MS - 60_000
        site.deploy(rule(args={"n": "${data.n}"}, dedupe={"key": "${data.path}", "ttl": "1s"}))
        async with site.running():
            await site.emit(*(msgspec.structs.replace(record(n, path=f"/{n}"), time_ms=hour_ago) for n in range(20)))
            await site.settled()
            site.runner._forget_at = 0.0  # a minute later
            with contextlib.closing(sqlite3.connect(tmp_path / "windows.db")) as db:
                assert db.execute(kept).fetchone()[0] > 10
                for n in range(20):
                    await site.emit(record(100 + n, path=f"/new/{n % PARTITIONS}/{n}"))
                    await site.settled()
                assert db.execute(kept).fetchone()[0] == 20

    with_site(tmp_path, body)


def test_dedupe_then_batch_with_several_functions(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        runs = [
            {"function": "f", "args": ["${each.data.n}"]},
            {"function": "g", "endpoint": "polaris", "args": ["${count}"]},
        ]
        site.deploy(rule(dedupe={"ttl": "1h"}, batch={"key": "${data.scan}", "count": 2}) | {"run": runs})
        async with site.running():
            for _ in range(3):  # each event is sent three times
                await site.emit(*(record(n, scan=n % 2) for n in range(4)))
            await site.settled()
        assert sorted(await site.arguments()) == [([0, 2],), ([1, 3],)]
        ids = {t.id[:14] for t in await site.tasks()}
        assert len(await site.tasks("e2")) == 2
        assert {t.id[:14] for t in await site.tasks("e2")} == ids

    with_site(tmp_path, body)


def test_one_tick_closes_a_window_and_no_other_tick_is_appended(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(batch={"key": "${data.k}", "wait": "200ms"}))
        async with site.running():
            await site.emit(record(1, k="a"), record(2, k="a"))
            await site.until(site.tasks)
            await site.settled()
        assert await site.arguments() == [{"n": [1, 2]}]
        kinds = [decode(MatchesRecord, r.value) for r in await all_of(site.log, MATCHES)]  # type: ignore[arg-type]
        assert sum(isinstance(k, Tick) for k in kinds) == 1

    with_site(tmp_path, body)


def test_a_tick_is_not_repeated_before_it_is_applied(tmp_path: Path) -> None:
    now = [1 << 50]

    async def body(site: Site) -> None:
        site.clock_ms = lambda: now[0]
        site.runner = site.new_runner()
        site.deploy(rule(batch={"count": 9, "wait": "1s"}))
        engine = asyncio.create_task(site.engine.run())
        await site.emit(record(1))
        reader = site.log.read([MATCHES])
        await site.runner._start()
        await site.runner.step(await reader.next())
        for _ in range(3):
            site.runner.wake()
            await site.runner.tick()
        (batch,) = await reader.next()
        assert len(batch.records) == 1
        await site.runner.step([batch])
        assert await site.arguments() == [{"n": [1]}]
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)
        await reader.close()
        await site.runner.close()

    with_site(tmp_path, body)


def test_a_window_due_while_the_server_was_down_closes_at_the_start(tmp_path: Path) -> None:
    now = [0]

    async def body(site: Site) -> None:
        site.clock_ms = lambda: now[0]
        site.runner = site.new_runner()
        site.deploy(rule(batch={"wait": "1h"}))
        async with site.running():
            await site.emit(record(1))
            await site.settled()
            (summary,) = (await site.runner.summary()).values()
            assert (summary.windows, summary.events) == (1, 1)
        assert not await site.tasks()
        now[0] = summary.due_ms
        site.runner = site.new_runner()
        async with site.running():
            await site.until(site.tasks)
        assert await site.arguments() == [{"n": [1]}]

    with_site(tmp_path, body)


def test_a_kill_between_firing_and_storing_states_repeats_the_same_tasks(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(batch={"count": 2}))

        def dies(*_: object) -> None:
            raise LogError("killed")

        store = SqliteStates(site.folder / "windows.db")
        site.runner._store, store.store = store, dies  # type: ignore[method-assign]
        engine = asyncio.create_task(site.engine.run())
        await site.emit(*(record(n) for n in range(5)))
        with pytest.raises(LogError):
            await site.runner.run()
        engine.cancel()
        await asyncio.gather(engine, return_exceptions=True)
        await site.runner.close()
        before = await site.tasks()
        site.runner = site.new_runner()
        async with site.running():
            await site.settled()
        after = (await site.tasks())[len(before) :]
        assert [t.id for t in after] == [t.id for t in before]
        assert len({t.id for t in before}) == len(before) == 2

    with_site(tmp_path, body)


def test_a_changed_batch_fires_the_buffered_events_with_the_old_arguments(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(args={"old": "${each.data.n}"}, batch={"count": 100}))
        async with site.running():
            await site.emit(record(1), record(2))
            await site.settled()
            # Other values are asked for, so the batch is another; the old events were held without them.
            site.deploy(rule(args={"new": "${each.data.path}"}, batch={"count": 2}), version=2)
            assert await site.until(site.arguments) == [{"old": [1, 2]}]
            await site.emit(record(3, path="c"), record(4, path="d"))
            await site.settled()
        assert await site.arguments() == [{"old": [1, 2]}, {"new": ["c", "d"]}]
        assert not await site.dead()

    with_site(tmp_path, body)


@pytest.mark.parametrize("how", ["changed", "due"])
def test_more_windows_than_one_tick_closes(tmp_path: Path, how: str) -> None:
    now = [0]

    async def body(site: Site) -> None:
        site.clock_ms = lambda: now[0]
        site.runner = site.new_runner()
        site.deploy(rule(batch={"key": "${data.n}", "wait": "1h"}))
        async with site.running():
            await site.emit(*(record(n) for n in range(PARTITIONS * 2 * TICK_WINDOWS)))
            await site.settled()
            if how == "changed":
                site.deploy(rule(batch={"key": "${data.n}", "wait": "2h"}), version=2)
            else:
                now[0] = 1 << 50
                await site.emit(record(-1))  # the clock of this test wakes nobody
            await site.until(lambda: _fired(site))
        assert sorted(a["n"][0] for a in await site.arguments() if a["n"] != [-1]) == list(
            range(PARTITIONS * 2 * TICK_WINDOWS)
        )

    async def _fired(site: Site) -> bool:
        return site.runner.firer.fired >= PARTITIONS * 2 * TICK_WINDOWS

    with_site(tmp_path, body)


def test_the_rule_in_force_at_the_firing_is_used(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(args={"n": "${each.data.n}"}, batch={"count": 3}))
        async with site.running():
            await site.emit(record(1), record(2))
            await site.settled()
            changed = rule(batch={"count": 3}) | {"run": {"function": "g", "args": {"m": "${each.data.n}"}}}
            site.deploy(changed, version=2)
            await site.emit(record(3))
            await site.settled()
        assert await site.arguments() == [{"m": [1, 2, 3]}]

    with_site(tmp_path, body)


@pytest.mark.parametrize("gone", ["removed", "disabled"])
def test_events_of_a_removed_rule_are_a_dead_letter_that_can_be_retried(tmp_path: Path, gone: str) -> None:
    async def body(site: Site) -> None:
        kept = rule(batch={"count": 3})
        site.deploy(kept)
        async with site.running():
            await site.emit(record(1), record(2))
            await site.settled()
            if gone == "removed":
                site.deploy(rule("other", args=["${data.n}"]) | {"on": {"type": "u"}}, version=2)
            else:
                site.deploy(kept, off=True, version=2)
                # Nothing matches now; the test closes the window itself.
                site.deploy(rule(batch={"count": 4}), off=True, version=3)
            (letter,) = await site.until(site.dead)
            assert not await site.tasks()
            assert letter.rule == "r"
            assert "a batch of 2 events, 1 (/s) to 2: " in letter.reason
            assert ("there is no rule 'r' any more" if gone == "removed" else "disabled by ann") in letter.reason
            site.deploy(kept, version=4)
            await site.log.append(letter.topic, [Record(letter.record)], letter.partition)
            await site.until(site.tasks)
        assert await site.arguments() == [{"n": [1, 2]}]

    with_site(tmp_path, body)


def test_an_invalid_record_or_event_becomes_a_dead_letter_and_others_fire(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(
            rule("many", batch={"count": 2, "bytes": "1GB"}),
            rule("keyed", args={"n": "${each.data.n}"}, batch={"key": "${data.scan}", "count": 1}),
        )
        await site.log.append(MATCHES, [Record(b"\xffpoison")], 1)
        async with site.running():
            await site.emit(record(1, size=5), record(2), record(3, size="x"), record(4, size=5, scan="s"))
            await site.emit(record(5, size=5, scan="k" * 2_000), record(6, n="y" * 600_000, size=1, scan="z"))
            await site.settled()
        assert sorted(map(str, await site.arguments())) == ["{'n': [1, 4]}", "{'n': [4]}"]
        reasons = sorted((d.rule, d.stage, d.reason) for d in await site.dead())
        assert [r for r in reasons if r[0] == "many"] == [
            ("many", "args", "batch.bytes: the event has no data.size that is a number of bytes"),
            ("many", "args", "batch.bytes: the event has no data.size that is a number of bytes"),
            ("many", "args", "the values for the arguments have 600,006 bytes; at most 500,000 are buffered per event"),
        ]
        assert [r[1] for r in reasons if not r[0]] == ["match"]
        assert {r[2] for r in reasons if r[0] == "keyed"} >= {
            "batch.key: the event has no data.scan",
            "the key has 2,000 characters",
        }

    with_site(tmp_path, body)


def test_large_batches_are_stored_as_blobs(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(args=["${each.data.text}"], batch={"count": 4}))
        async with site.running():
            await site.emit(*(record(n, text="x" * 100_000) for n in range(4)))
            await site.until(site.tasks)
        assert len(site.stored) == 1
        (task,) = await site.tasks()
        assert len(task.args) < 1_000

    with_site(tmp_path, body)


def test_a_lost_file_is_rebuilt_from_the_log(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.deploy(rule(batch={"count": 3}))
        async with site.running():
            await site.emit(*(record(n) for n in range(5)))
            await site.settled()
        before = await site.tasks()
        for path in site.folder.glob("windows.db*"):
            path.unlink()
        site.runner = site.new_runner()
        async with site.running():
            await site.settled()
            await site.emit(record(5))
            await site.settled()
        found = await site.tasks()
        assert [t.id for t in found[:2]] == [before[0].id] * 2
        assert (await site.arguments())[2:] == [{"n": [3, 4, 5]}]

    with_site(tmp_path, body)


def test_states_of_another_log_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    async def first(site: Site) -> None:
        site.deploy(rule(batch={"count": 3}))
        async with site.running():
            await site.emit(*(record(n) for n in range(5)))
            await site.settled()

    async def second(site: Site) -> None:
        site.deploy(rule(batch={"count": 3}))
        site.folder = tmp_path / "a"
        site.runner = site.new_runner()
        async with site.running():
            await site.emit(*(record(n) for n in range(10, 13)))
            await site.until(site.tasks)  # the file's progress is not valid until the file is dropped
        assert await site.arguments() == [{"n": [10, 11, 12]}]

    with_site(tmp_path / "a", first)
    with_site(tmp_path / "b", second)
    assert "2 events in open windows of partition" in caplog.text


def test_states_are_stored_after_a_full_disk_has_room_again(tmp_path: Path) -> None:
    """Fired tasks are durable; states are stored when there is room.

    No task fires twice under another id.
    """

    async def body(site: Site) -> None:
        site.deploy(rule(batch={"count": 2}))
        store = SqliteStates(site.folder / "windows.db")
        real, tries = store.store, [0]

        def full_twice(group: Any) -> None:
            tries[0] += 1
            if tries[0] <= 2:
                raise DiskFull("full")
            real(group)

        site.runner._store, store.store = store, full_twice  # type: ignore[method-assign]

        async def keep() -> None:
            while True:
                try:
                    await site.runner.run()
                except DiskFull:
                    continue

        engine, runner = asyncio.create_task(site.engine.run()), asyncio.create_task(keep())
        await site.emit(*(record(n) for n in range(4)))
        await site.settled()
        for part in (engine, runner):
            part.cancel()
        await asyncio.gather(engine, runner, return_exceptions=True)
        await site.runner.close()
        assert len({t.id for t in await site.tasks()}) == 2
        assert tries[0] > 2

    with_site(tmp_path, body)


def test_kill_9_at_any_moment_gives_each_batch_once(tmp_path: Path) -> None:
    """Kill a process with engine and runner repeatedly while events arrive.

    In the end each accepted event is in one batch. Batches that were fired twice have the same id
    and the same events.
    """
    chance = random.Random(7)
    rules = [rule(batch={"key": "${data.k}", "count": 5, "wait": "1h"})]
    accepted = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.integration.embedded_site", str(tmp_path), json.dumps(rules)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            for _ in range(chance.randrange(1, 12)):
                process.stdin.write(f"{accepted} {accepted + 35}\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"{accepted + 35}\n"
                accepted += 35
            process.kill()

    async def body(site: Site) -> None:
        site.deploy(*rules)
        async with site.running():
            await site.settled()
            waiting = sum(s.events for s in (await site.runner.summary()).values())
        batches: dict[bytes, list[int]] = {}
        for task, args in zip(await site.tasks(), await site.arguments(), strict=True):
            assert batches.setdefault(task.id, args["n"]) == args["n"]
        fired = [n for ns in batches.values() for n in ns]
        assert len(fired) == len(set(fired))
        assert len(fired) + waiting == accepted
        assert all(len(ns) == 5 and len({n % 7 for n in ns}) == 1 for ns in batches.values())

    with_site(tmp_path, body)


def test_on_kafka_windows_of_several_partitions_close_in_one_step(kafka: tuple[str, str], tmp_path: Path) -> None:
    async def run() -> None:
        log = await open_log(f"kafka://{kafka[0]}?prefix=w{uuid.uuid4().hex[:10]}.&session_s=2")
        try:
            await log.ensure({MATCHES: Topic(partitions=PARTITIONS)})
            site = Site(log, tmp_path)
            site.deploy(rule(batch={"key": "${data.k}", "count": 2}))
            await site.emit(*(record(n, k=n % 20) for n in range(40)))
            async with site.running():

                async def all_fired() -> bool:
                    return len(await site.arguments()) == 20

                await site.until(all_fired)
            assert sorted(args["n"] for args in await site.arguments()) == [[n, n + 20] for n in range(20)]
        finally:
            await log.close()

    asyncio.run(run())
