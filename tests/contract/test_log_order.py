"""Order, offsets, partitions, watchers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from log_backends import Backend, quiet, records, take, values

from oncue.errors import LogError, TooLarge
from oncue.log import Append, Log, Position, Reader, Record, RecordBatch, Topic

Open = Callable[[], Awaitable[Log]]


def test_appends_are_in_the_order_of_their_calls(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        futures = [log.append("a", records(*[f"{n}.{i}" for i in range(n % 3 + 1)])) for n in range(300)]
        positions = [p for future in futures for p in await future]
        wanted = [f"{n}.{i}".encode() for n in range(300) for i in range(n % 3 + 1)]
        seen = await take(reader, len(wanted))
        assert values(seen) == wanted
        assert [s[2] for s in seen] == list(range(len(wanted)))
        place = 0
        for n, position in enumerate(positions):
            assert position == Position("a", 0, place, n % 3 + 1)
            place += position.count
        assert await log.end_offsets(["a"]) == {("a", 0): len(wanted)}
        await log.close()

    asyncio.run(main())


async def _batches(reader: Reader, count: int) -> list[RecordBatch]:
    found: list[RecordBatch] = []
    while len(found) < count:
        found += await reader.next()
    return found


def test_an_append_comes_as_one_batch_and_whole(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        live = log.read(["a"])
        sent = [
            Record(b"v%d" % i, b"k%d" % i, (("ce_id", b"%d" % i), ("content-type", b"x/y")), 1_700_000_000_000 + i)
            for i in range(50)
        ]
        await log.append("a", sent)
        await log.append("a", [Record(b"")])
        for reader in (live, log.read(["a"], start="earliest")):  # by memory, and from the disk
            first, second = await _batches(reader, 2)
            assert list(first.records) == sent
            assert list(first.offsets) == list(range(50))
            assert first.next_offset == 50
            assert second.records[0].value == b""
            assert second.records[0].time_ms > 1_700_000_000_000, "the log stamps what has no time"
        await log.close()

    asyncio.run(main())


def test_partitions_by_key_and_by_number(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"p": Topic(partitions=4)})
        many = [Record(b"%d" % i, b"key%d" % (i % 10)) for i in range(200)]
        positions = await log.append("p", many)
        assert sum(p.count for p in positions) == 200
        assert len(positions) > 1
        assert (await log.append("p", records("x"), 3))[0].partition == 3
        seen = await take(log.read(["p"]), 201)
        homes: dict[bytes, set[int]] = {}
        order: dict[int, list[int]] = {}
        for _, partition, offset, value in seen:
            order.setdefault(partition, []).append(offset)
            if value != b"x":
                homes.setdefault(b"key%d" % (int(value) % 10), set()).add(partition)
        assert all(len(home) == 1 for home in homes.values()), "a key has one partition"
        assert all(offsets == list(range(len(offsets))) for offsets in order.values())
        for key in range(10):
            mine = [int(v) for _, _, _, v in seen if v != b"x" and int(v) % 10 == key]
            assert mine == sorted(mine)
        await log.close()
        again = await open_it()
        (position,) = await again.append("p", [Record(b"new", b"key3")])
        assert position.partition == next(iter(homes[b"key3"])), "the same after a restart"
        await again.close()

    asyncio.run(main())


def test_a_partition_that_is_not_there(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        with pytest.raises(LogError, match="no partition 7"):
            await log.append("a", records("x"), 7)
        await log.ensure({"b": Topic(partitions=3)})
        with pytest.raises(LogError, match="cannot have"):
            await log.ensure({"b": Topic(partitions=2)})
        assert await log.append("a", []) == []
        await log.close()

    asyncio.run(main())


def test_more_partitions_reach_readers_that_are_there(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        await log.append("a", records("0"))
        await log.ensure({"a": Topic(partitions=3, retention_ms=86_400_000)})
        await log.append("a", records("2"), 2)
        assert {(s[1], s[3]) for s in await take(reader, 2)} == {(0, b"0"), (2, b"2")}
        assert (await log.topics())["a"] == Topic(partitions=3, retention_ms=86_400_000)
        await log.close()
        log = await open_it()
        assert (await log.topics())["a"] == Topic(partitions=3, retention_ms=86_400_000)
        assert len(await take(log.read(["a"]), 2)) == 2
        await log.close()

    asyncio.run(main())


def test_early_watchers_hear_before_it_is_durable_and_late_ones_after(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        heard: list[tuple[str, str, bytes]] = []

        def watcher(name: str) -> Callable[[str, Sequence[Record]], None]:
            return lambda topic, found: heard.extend((name, topic, r.value) for r in found)

        log.watch("t.", watcher("late"))
        if log.fifo:
            end = log.watch("t.", watcher("early"), early=True)
        futures = [log.append("t.a", records(str(n))) for n in range(5)]
        log.append("other", records("no"))
        if log.fifo:
            assert heard == [("early", "t.a", b"%d" % n) for n in range(5)], "within the call"
            assert not any(f.done() for f in futures)
            end()
        heard.clear()
        await asyncio.gather(*futures)
        await log.commit("g", [], [Append("t.b", records("c"))])
        assert heard == [("late", "t.a", b"%d" % n) for n in range(5)] + [("late", "t.b", b"c")]
        await log.close()

    asyncio.run(main())


def test_what_an_early_watcher_appends_follows_what_it_heard(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        if not log.fifo:
            await log.close()
            pytest.skip("early watching is for logs that keep the order of calls")

        def answer(_: str, found: Sequence[Record]) -> None:
            if not found[0].value.startswith(b"re:"):
                log.append("a", [Record(b"re:" + found[0].value)])

        log.watch("a", answer, early=True)
        reader = log.read(["a"])
        for n in range(20):
            log.append("a", records(str(n)))
        wanted = [v for n in range(20) for v in (b"%d" % n, b"re:%d" % n)]
        assert values(await take(reader, 40)) == wanted
        await log.close()

    asyncio.run(main())


def test_a_watcher_that_fails_harms_nobody(open_it: Open, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        log = await open_it()

        def broken(topic: str, found: Sequence[Record]) -> None:
            raise RuntimeError("mine")

        log.watch("a", broken, early=log.fifo)
        log.watch("a", broken)
        reader = log.read(["a"])
        await log.append("a", records("x"))
        assert values(await take(reader, 1)) == [b"x"]
        await log.close()

    asyncio.run(main())
    assert "mine" in caplog.text


def test_closing_ends_readers_and_refuses_appends(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        waiting = asyncio.ensure_future(reader.next())
        await asyncio.sleep(0)
        handed_over = log.append("b", records("last"))
        await log.close()
        assert (await handed_over)[0].first == 0, "what was handed over is written"
        with pytest.raises(LogError, match="closed"):
            await waiting
        for doing in (reader.next(), log.append("a", records("x")), log.commit("g", []), log.housekeep()):
            with pytest.raises(LogError, match="closed"):
                await doing
        await log.close()

    asyncio.run(main())


def test_many_topics(open_it: Open, backend: Backend) -> None:
    async def main() -> None:
        log = await open_it()
        names = [f"oncue.tasks.{n}" for n in range(backend.topics)]
        reader = log.read(names)
        await asyncio.gather(*[log.append(name, records(name)) for name in names])
        assert {s[0] for s in await take(reader, len(names))} == set(names)
        await log.close()
        log = await open_it()
        assert len(await log.topics()) == len(names)
        ends = await log.end_offsets(names)
        assert set(ends.values()) == {1}
        seen = await take(log.read(names), len(names))
        assert {s[3].decode() for s in seen} == set(names)
        assert all(s[0].encode() == s[3] for s in seen)
        await log.close()

    asyncio.run(main())


def test_the_largest_record(open_it: Open, backend: Backend) -> None:
    """64 MB, or what the log takes; random, so that nothing makes it smaller on its way."""

    async def main() -> None:
        log = await open_it()
        live = log.read(["big"])
        value = random.Random(1).randbytes(backend.record_bytes or 64 * 1024 * 1024)
        await log.append("big", [Record(value)])
        await log.append("big", records("small"))
        for reader in (live, log.read(["big"])):
            first, second = await take(reader, 2)
            assert first[3] == value
            assert second[3] == b"small"
            assert await quiet(reader)
        if backend.record_bytes:
            both = [log.append("big", [Record(value + b"." * 200)]), log.append("big", records("still"))]
            with pytest.raises(TooLarge, match="8,388,608"):
                await both[0]
            await both[1]
            with pytest.raises(TooLarge):
                await log.commit("g", [], [Append("big", [Record(value + b"." * 200)])])
            assert values(await take(live, 1)) == [b"still"]
        await log.close()

    asyncio.run(main())
