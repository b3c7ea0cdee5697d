"""Contract of Log.read and Log.commit: groups, starts, seek, slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from log_backends import Backend, flat, quiet, read_exactly, records, values

from oncue.errors import LogError
from oncue.log import Append, Log, Record, RecordBatch, Topic
from oncue.protocol.codec import decode
from oncue.protocol.records import DeadLetter
from oncue.protocol.topics import DEAD

Open = Callable[[], Awaitable[Log]]


async def _numbers(log: Log, topic: str, count: int, first: int = 0) -> None:
    await asyncio.gather(*[log.append(topic, records(str(n))) for n in range(first, first + count)])


async def _one_by_one(log: Log, topic: str, count: int) -> None:
    """Append records one at a time, so that each is a batch of its own."""
    for n in range(count):
        await log.append(topic, records(str(n)))


def _wanted(first: int, end: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, end)]


def test_groups_are_independent_and_resume_after_their_committed_offsets(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await _one_by_one(log, "a", 10)
        one, two = log.read(["a"], group="one"), log.read(["a"], group="two")
        batches: list[RecordBatch] = []
        while len(batches) < 4:
            batches += await one.next(max_batches=4 - len(batches))
        assert values(flat(batches)) == _wanted(0, 4)
        await log.commit("one", batches)
        assert await log.committed("one") == {("a", 0): 4}
        assert await log.committed("two") == {}
        assert await log.lag("one", ["a"]) == {("a", 0): 6}
        assert await log.lag("two", ["a"]) == {("a", 0): 10}
        assert values(await read_exactly(two, 10)) == _wanted(0, 10)
        await one.close()
        assert values(await read_exactly(log.read(["a"], group="one"), 6)) == _wanted(4, 10)
        await log.close()
        log = await open_it()
        assert await log.committed("one") == {("a", 0): 4}
        assert values(await read_exactly(log.read(["a"], group="one"), 6)) == _wanted(4, 10)
        assert values(await read_exactly(log.read(["a"], group="two"), 10)) == _wanted(0, 10)
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize("repeatable", [False, True])
def test_commit_stores_offsets_and_appends_atomically(open_it: Open, repeatable: bool) -> None:
    async def main() -> None:
        log = await open_it()
        await _numbers(log, "in", 3)
        outs = log.read(["out", "more"])
        batches = await log.read(["in"], group="g").next()
        appends = [Append("out", records("a", "b")), Append("more", records("c"))]
        positions = await log.commit("g", batches, appends, repeatable=repeatable)
        assert [(p.topic, p.first, p.count) for p in positions] == [("out", 0, 2), ("more", 0, 1)]
        assert sorted(values(await read_exactly(outs, 3))) == [b"a", b"b", b"c"]
        assert await log.lag("g", ["in"]) == {("in", 0): 0}
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize("repeatable", [False, True])
def test_all_batches_of_one_read_can_be_committed_at_once(open_it: Open, repeatable: bool) -> None:
    """The batches of one call may be of several partitions."""

    async def main() -> None:
        log = await open_it()
        await log.ensure({"in": Topic(partitions=4)})
        sent = [Record(b"%d" % n, b"k%d" % n) for n in range(60)]
        await asyncio.gather(*[log.append("in", [r]) for r in sent])
        reader = log.read(["in"], group="g")
        done: list[bytes] = []
        async with asyncio.timeout(30):
            while len(done) < 60:
                batches = await reader.next(max_batches=3)
                found = [r for b in batches for r in b.records]
                await log.commit("g", batches, [Append("out", found)], repeatable=repeatable)
                done += [r.value for r in found]
        assert sorted(done) == sorted(r.value for r in sent)
        assert await log.committed("g") == await log.end_offsets(["in"])
        assert sorted(values(await read_exactly(log.read(["out"]), 60))) == sorted(done)
        assert set((await log.lag("g", ["in"])).values()) == {0}
        await log.close()

    asyncio.run(main())


def test_start_positions_of_a_reader(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await _numbers(log, "a", 5)
        await _numbers(log, "b", 5)
        latest = log.read(["a"], start="latest")
        assert await quiet(latest)
        mapped = await read_exactly(log.read(["a", "b"], start={("a", 0): 3}), 7)
        assert values(s for s in mapped if s[0] == "a") == _wanted(3, 5)
        assert values(s for s in mapped if s[0] == "b") == _wanted(0, 5)
        ahead = log.read(["a"], start={("a", 0): 7})
        assert values(await read_exactly(log.read(["a"], group="g", start="earliest"), 5)) == _wanted(0, 5)
        await _numbers(log, "a", 5, 5)
        assert values(await read_exactly(latest, 5)) == _wanted(5, 10)
        assert values(await read_exactly(ahead, 3)) == _wanted(7, 10), "a start beyond the end"
        await log.close()

    asyncio.run(main())


def test_a_reader_of_a_topic_that_does_not_exist_yet(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["new"])
        assert await quiet(reader)
        await _numbers(log, "new", 3)
        assert values(await read_exactly(reader, 3)) == _wanted(0, 3)
        await log.close()

    asyncio.run(main())


def test_seek_rewinds_and_skips(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.append("a", records(*[str(n) for n in range(10)]))
        await _numbers(log, "a", 10, 10)
        reader = log.read(["a"])
        assert values(await read_exactly(reader, 20)) == _wanted(0, 20)
        await reader.seek(("a", 0), 5)  # in the middle of a batch
        assert values(await read_exactly(reader, 15)) == _wanted(5, 20)
        await reader.seek(("a", 0), 0)
        await reader.next(max_batches=1)
        await reader.seek(("a", 0), 18)  # drops what is queued
        assert values(await read_exactly(reader, 2)) == _wanted(18, 20)
        await reader.seek(("a", 0), 2)
        pending = asyncio.ensure_future(reader.next())
        await asyncio.sleep(0)
        await reader.seek(("a", 0), 19)  # while a read is under way
        assert values(flat(await pending)) == _wanted(19, 20)
        await reader.seek(("a", 0), 20)
        await _numbers(log, "a", 2, 20)
        assert values(await read_exactly(reader, 2)) == _wanted(20, 22)
        with pytest.raises(LogError):
            await reader.seek(("other", 0), 0)
        await log.close()

    asyncio.run(main())


def test_iterating_yields_batches(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await _numbers(log, "a", 100)
        found: list[bytes] = []
        async for batch in log.read(["a"]):
            found += [r.value for r in batch.records]
            if len(found) == 100:
                break
        assert found == _wanted(0, 100)
        await log.close()

    asyncio.run(main())


def test_a_slow_reader_delays_no_other_and_misses_nothing(open_it: Open) -> None:
    """48 MB stay unread: more than is kept in memory for one reader."""

    async def main() -> None:
        log = await open_it()
        slow, quick = log.read(["a"]), log.read(["a"])
        filler = b"." * 1_000_000
        for n in range(48):
            await log.append("a", [Record(b"%d|" % n + filler)])
            ((_, _, offset, value),) = await read_exactly(quick, 1)
            assert (offset, value[:3]) == (n, (b"%d|" % n + b"..")[:3])
        seen: list[int] = []

        async def read() -> None:
            while len(seen) < 400:
                for _, _, offset, value in flat(await slow.next(max_batches=3)):
                    assert int(value.split(b"|")[0]) == offset
                    seen.append(offset)

        async def write() -> None:
            for n in range(48, 400):  # the slow reader catches up during further appends
                await log.append("a", [Record(b"%d|" % n)])

        async with asyncio.timeout(60):
            await asyncio.gather(read(), write())
        assert seen == list(range(400))
        assert await quiet(slow)
        await log.close()

    asyncio.run(main())


def test_a_cancelled_wait_loses_nothing(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        reader = log.read(["a"])
        for n in range(20):
            assert await quiet(reader, 0.001)
            await log.append("a", records(str(n)))
            assert values(await read_exactly(reader, 1)) == [b"%d" % n]
        await log.close()

    asyncio.run(main())


def test_a_damaged_batch_becomes_one_dead_letter_and_is_skipped(
    open_it: Open, backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def write() -> None:
        log = await open_it()
        await _one_by_one(log, "a", 5)
        await log.close()

    async def read() -> None:
        log = await open_it()
        dead = log.read([DEAD])
        for _ in range(2):
            assert values(await read_exactly(log.read(["a"]), 4)) == [b"0", b"1", b"3", b"4"]
        letter = decode(DeadLetter, (await read_exactly(dead, 1))[0][3])
        assert (letter.stage, letter.topic, letter.partition, letter.offset) == ("decode", "a", 0, 2)
        assert letter.record == damaged
        assert letter.reason
        assert letter.remedy
        assert await quiet(dead), "one letter a batch"
        await log.close()

    async def again() -> None:
        log = await open_it()
        assert values(await read_exactly(log.read(["a"]), 4)) == [b"0", b"1", b"3", b"4"]
        await log.append("a", records("5"))
        assert len(await read_exactly(log.read([DEAD]), 1)) == 1, "no second letter after a restart"
        await log.close()

    asyncio.run(write())
    damaged = backend.damage(tmp_path / "log", "a", 2)
    asyncio.run(read())
    asyncio.run(again())
    assert "a/0 at 2" in caplog.text


def test_a_reader_reaches_the_end_after_a_damaged_last_batch(open_it: Open, backend: Backend, tmp_path: Path) -> None:
    """A starting server waits until its view has reached the end of the log."""

    async def write() -> None:
        log = await open_it()
        await _one_by_one(log, "a", 3)
        await log.close()

    async def read() -> None:
        log = await open_it()
        for _ in range(2):  # when the damage is found, and when it is known
            end = (await log.end_offsets(["a"]))["a", 0]
            reader = log.read(["a"])
            reached, seen = 0, []
            async with asyncio.timeout(30):
                while reached < end:
                    for batch in await reader.next():
                        seen += [r.value for r in batch.records]
                        reached = batch.next_offset
            assert seen == [b"0", b"1"]
            await reader.close()
        await log.close()

    asyncio.run(write())
    backend.damage(tmp_path / "log", "a", 2)
    asyncio.run(read())
