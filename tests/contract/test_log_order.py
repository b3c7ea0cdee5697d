"""Contract of Log.append, Log.watch and partitions: order and offsets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from log_backends import Backend, quiet, read_exactly, records, values

from oncue.errors import LogError, TooLarge
from oncue.log import Append, Log, Position, Reader, Record, RecordBatch, Topic

Open = Callable[[], Awaitable[Log]]


def test_appends_keep_the_order_of_their_calls(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        futures = [log.append("a", records(*[f"{n}.{i}" for i in range(n % 3 + 1)])) for n in range(300)]
        positions = [p for future in futures for p in await future]
        wanted = [f"{n}.{i}".encode() for n in range(300) for i in range(n % 3 + 1)]
        seen = await read_exactly(reader, len(wanted))
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


def test_an_append_is_read_as_one_complete_batch(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        live = log.read(["a"])
        sent = [
            Record(b"v%d" % i, b"k%d" % i, (("ce_id", b"%d" % i), ("content-type", b"x/y")), 1_700_000_000_000 + i)
            for i in range(50)
        ]
        await log.append("a", sent)
        await log.append("a", [Record(b"")])
        for reader in (live, log.read(["a"], start="earliest")):  # from memory, and from the disk
            first, second = await _batches(reader, 2)
            assert list(first.records) == sent
            assert list(first.offsets) == list(range(50))
            assert first.next_offset == 50
            assert second.records[0].value == b""
            assert second.records[0].time_ms > 1_700_000_000_000, "the log sets the time of records without one"
        await log.close()

    asyncio.run(main())


def test_records_are_partitioned_by_key_or_by_number(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"p": Topic(partitions=4)})
        many = [Record(b"%d" % i, b"key%d" % (i % 10)) for i in range(200)]
        positions = await log.append("p", many)
        assert sum(p.count for p in positions) == 200
        assert len(positions) > 1
        assert (await log.append("p", records("x"), 3))[0].partition == 3
        seen = await read_exactly(log.read(["p"]), 201)
        partitions_of: dict[bytes, set[int]] = {}
        order: dict[int, list[int]] = {}
        for _, partition, offset, value in seen:
            order.setdefault(partition, []).append(offset)
            if value != b"x":
                partitions_of.setdefault(b"key%d" % (int(value) % 10), set()).add(partition)
        assert all(len(found) == 1 for found in partitions_of.values()), "a key has one partition"
        assert all(offsets == list(range(len(offsets))) for offsets in order.values())
        for key in range(10):
            of_key = [int(v) for _, _, _, v in seen if v != b"x" and int(v) % 10 == key]
            assert of_key == sorted(of_key)
        await log.close()
        again = await open_it()
        (position,) = await again.append("p", [Record(b"new", b"key3")])
        assert position.partition == next(iter(partitions_of[b"key3"])), "the same after a restart"
        await again.close()

    asyncio.run(main())


def test_a_missing_partition_is_refused(open_it: Open) -> None:
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


def test_added_partitions_reach_open_readers(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        await log.append("a", records("0"))
        await log.ensure({"a": Topic(partitions=3, retention_ms=86_400_000)})
        await log.append("a", records("2"), 2)
        assert {(s[1], s[3]) for s in await read_exactly(reader, 2)} == {(0, b"0"), (2, b"2")}
        assert (await log.topics())["a"] == Topic(partitions=3, retention_ms=86_400_000)
        await log.close()
        log = await open_it()
        assert (await log.topics())["a"] == Topic(partitions=3, retention_ms=86_400_000)
        assert len(await read_exactly(log.read(["a"]), 2)) == 2
        await log.close()

    asyncio.run(main())


def test_early_watchers_run_before_a_record_is_durable_and_late_ones_after(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        watched: list[tuple[str, str, bytes]] = []

        def watcher(name: str) -> Callable[[str, Sequence[Record]], None]:
            return lambda topic, found: watched.extend((name, topic, r.value) for r in found)

        log.watch("t.", watcher("late"))
        if log.fifo:
            end = log.watch("t.", watcher("early"), early=True)
        futures = [log.append("t.a", records(str(n))) for n in range(5)]
        log.append("other", records("no"))
        if log.fifo:
            assert watched == [("early", "t.a", b"%d" % n) for n in range(5)], "within the call"
            assert not any(f.done() for f in futures)
            end()
        watched.clear()
        await asyncio.gather(*futures)
        await log.commit("g", [], [Append("t.b", records("c"))])
        assert watched == [("late", "t.a", b"%d" % n) for n in range(5)] + [("late", "t.b", b"c")]
        await log.close()

    asyncio.run(main())


def test_a_record_appended_by_an_early_watcher_follows_its_cause(open_it: Open) -> None:
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
        assert values(await read_exactly(reader, 40)) == wanted
        await log.close()

    asyncio.run(main())


def test_a_failing_watcher_is_logged_and_stops_nothing(open_it: Open, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        log = await open_it()

        def broken(topic: str, found: Sequence[Record]) -> None:
            raise RuntimeError("watcher failed")

        log.watch("a", broken, early=log.fifo)
        log.watch("a", broken)
        reader = log.read(["a"])
        await log.append("a", records("x"))
        assert values(await read_exactly(reader, 1)) == [b"x"]
        await log.close()

    asyncio.run(main())
    assert "watcher failed" in caplog.text


def test_closing_stops_readers_and_refuses_appends(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        waiting = asyncio.ensure_future(reader.next())
        await asyncio.sleep(0)
        pending = log.append("b", records("last"))
        await log.close()
        assert (await pending)[0].first == 0, "an append made before close() is written"
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
        assert {s[0] for s in await read_exactly(reader, len(names))} == set(names)
        await log.close()
        log = await open_it()
        assert len(await log.topics()) == len(names)
        ends = await log.end_offsets(names)
        assert set(ends.values()) == {1}
        seen = await read_exactly(log.read(names), len(names))
        assert {s[3].decode() for s in seen} == set(names)
        assert all(s[0].encode() == s[3] for s in seen)
        await log.close()

    asyncio.run(main())


def test_the_largest_record(open_it: Open, backend: Backend) -> None:
    """64 MB, or the log's limit; random bytes, so that compression has no effect."""

    async def main() -> None:
        log = await open_it()
        live = log.read(["big"])
        value = random.Random(1).randbytes(backend.record_bytes or 64 * 1024 * 1024)
        await log.append("big", [Record(value)])
        await log.append("big", records("small"))
        for reader in (live, log.read(["big"])):
            first, second = await read_exactly(reader, 2)
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
            assert values(await read_exactly(live, 1)) == [b"still"]
        await log.close()

    asyncio.run(main())
