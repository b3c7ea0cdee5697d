"""Contract of Log.truncate; group offsets survive it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from log_backends import Backend, flat, quiet, read_exactly, records, values

from oncue.log import Log

Open = Callable[[], Awaitable[Log]]


def test_truncation_removes_records_and_offsets_continue(open_it: Open, backend: Backend) -> None:
    async def main() -> None:
        log = await open_it()
        for n in range(10):
            await log.append("a", records(f"{n}.0", f"{n}.1"))
        await log.truncate("a", 0, 7)  # in the middle of a stored batch
        begin = 6 if backend.whole_rows else 7
        first = b"3.0" if backend.whole_rows else b"3.1"
        assert await log.begin_offsets(["a"]) == {("a", 0): begin}
        assert values(await read_exactly(log.read(["a"]), 20 - begin))[0] == first
        assert values(await read_exactly(log.read(["a"], start={("a", 0): 2}), 20 - begin))[0] == first
        assert await log.lag("g", ["a"]) == {("a", 0): 20 - begin}
        await log.truncate("a", 0, 1_000)
        assert await log.begin_offsets(["a"]) == await log.end_offsets(["a"]) == {("a", 0): 20}
        assert await log.lag("g", ["a"]) == {("a", 0): 0}
        reader = log.read(["a"])
        assert await quiet(reader)
        await log.close()
        log = await open_it()
        assert await log.begin_offsets(["a"]) == await log.end_offsets(["a"]) == {("a", 0): 20}
        (position,) = await log.append("a", records("new"))
        assert position.first == 20, "offsets are never reused"
        assert await log.begin_offsets(["a"]) == {("a", 0): 20}
        assert values(await read_exactly(log.read(["a"]), 1)) == [b"new"]
        await log.close()

    asyncio.run(main())


def test_a_reader_continues_after_a_truncated_range(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        for n in range(100):
            await log.append("a", records(str(n)))
        reader = log.read(["a"])
        await reader.seek(("a", 0), 0)
        await log.truncate("a", 0, 90)
        seen: list[int] = []
        while not seen or seen[-1] < 99:  # records already fetched may come before the gap
            seen += [int(s[3]) for s in flat(await reader.next())]
        assert seen[-10:] == list(range(90, 100))
        assert seen[:-10] == list(range(len(seen) - 10))
        await log.append("a", records("100"))
        assert values(await read_exactly(reader, 1)) == [b"100"]
        await log.close()

    asyncio.run(main())


def test_groups_survive_truncation_and_reopening(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        for n in range(6):
            await log.append("a", records(str(n)))
        reader = log.read(["a"])
        await read_exactly(reader, 6)
        await reader.seek(("a", 0), 0)
        batches = await reader.next(max_batches=1)
        while batches[-1].next_offset < 2:
            batches += await reader.next(max_batches=1)
        await log.commit("g", batches)
        await log.truncate("a", 0, 6)
        await log.housekeep()
        assert await log.committed("g") == {("a", 0): 2}
        assert await log.lag("g", ["a"]) == {("a", 0): 0}
        await log.close()
        log = await open_it()
        assert await log.committed("g") == {("a", 0): 2}
        await log.append("a", records("next"))
        assert await log.lag("g", ["a"]) == {("a", 0): 1}
        assert values(await read_exactly(log.read(["a"], group="g"), 1)) == [b"next"]
        await log.close()

    asyncio.run(main())
