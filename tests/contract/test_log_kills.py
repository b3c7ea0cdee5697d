"""`kill -9` during work: acknowledged records survive, in order, each once."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from log_backends import Backend, read_exactly, records, values

from oncue.log import Log

Open = Callable[[], Awaitable[Log]]
CHILD = Path(__file__).with_name("log_child.py")


def _run_and_kill(backend: Backend, folder: Path, what: str, first: int, acks: int, delay_s: float) -> int:
    """Run a child, kill it `delay_s` after `acks` acknowledgements.

    Return the last number that it acknowledged.
    """
    command = [sys.executable, str(CHILD), backend.name, str(folder), what, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            lines = [child.stdout.readline() for _ in range(acks)]
            try:
                child.wait(delay_s)
            except subprocess.TimeoutExpired:
                child.kill()
            lines += child.stdout.read().splitlines(keepends=True)
        finally:
            child.kill()
        whole = [int(line) for line in lines if line.endswith(b"\n")]
        assert len(whole) >= acks, child.stderr.read().decode()
        return whole[-1]


def test_acknowledged_appends_survive(open_it: Open, backend: Backend, tmp_path: Path) -> None:
    chance = random.Random(1)
    first = 0

    async def check(acknowledged: int) -> int:
        log = await open_it()
        end = (await log.end_offsets(["a"]))[("a", 0)]
        assert end > acknowledged
        seen = await read_exactly(log.read(["a"]), end)
        assert [s[2] for s in seen] == list(range(end))
        assert values(seen) == [b"%d" % n for n in range(end)]
        await log.close()
        return end

    for _ in range(15):
        last = _run_and_kill(backend, tmp_path / "log", "append", first, chance.randint(1, 60), chance.random() * 0.03)
        if chance.random() < 0.6:
            first = asyncio.run(check(last))
        else:  # the next child opens the log as the kill left it
            first = asyncio.run(_end(open_it))
            assert first > last


async def _end(open_it: Open) -> int:
    log = await open_it()
    try:
        return (await log.end_offsets(["a"]))[("a", 0)]
    finally:
        await log.close()


def test_committed_offsets_and_their_appends_become_durable_together(
    open_it: Open, backend: Backend, tmp_path: Path
) -> None:
    chance = random.Random(2)
    count = 6_000

    async def fill() -> None:
        log = await open_it()
        for n in range(0, count, 2):  # each awaited, so each is a batch of its own
            await log.append("in", records(str(n), str(n + 1)))
        await log.close()

    async def check(acknowledged: int) -> None:
        log = await open_it()
        done = (await log.committed("g"))[("in", 0)]
        # A successor's first read commits or aborts interrupted commits.
        await log.read(["in"], group="g").next()
        end = (await log.end_offsets(["out"]))[("out", 0)]
        assert done > acknowledged
        found: list[bytes] = []
        reader = log.read(["out"])
        reached = 0
        while reached < end:
            for batch in await reader.next():
                found += [r.value for r in batch.records]
                reached = batch.next_offset
        assert found == [b"%d" % n for n in range(done)], "one result for each committed record"
        await log.close()

    asyncio.run(fill())
    for _ in range(8):
        last = _run_and_kill(backend, tmp_path / "log", "commit", 0, chance.randint(1, 80), chance.random() * 0.03)
        asyncio.run(check(last))


def test_repeatable_commits_lose_nothing(open_it: Open, backend: Backend, tmp_path: Path) -> None:
    """Each record that the group has committed had its effect, once or more."""
    chance = random.Random(4)

    async def fill() -> None:
        log = await open_it()
        for n in range(4_000):  # each awaited, so each is a batch of its own
            await log.append("in", records(str(n)))
        await log.close()

    async def check(acknowledged: int) -> None:
        log = await open_it()
        done = max((await log.committed("g")).get(("in", 0), 0), acknowledged + 1)
        end = (await log.end_offsets(["out"]))[("out", 0)]
        found: list[int] = []
        reader = log.read(["out"])
        reached = 0
        while reached < end:
            for batch in await reader.next():
                found += [int(r.value) for r in batch.records]
                reached = batch.next_offset
        assert set(range(done)) <= set(found)
        assert list(dict.fromkeys(found)) == sorted(set(found)), "in order, apart from repeated records"
        await log.close()

    asyncio.run(fill())
    for _ in range(6):
        last = _run_and_kill(backend, tmp_path / "log", "repeat", 0, chance.randint(1, 80), chance.random() * 0.03)
        asyncio.run(check(last))


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_kill_during_housekeeping_loses_nothing(open_it: Open, backend: Backend, tmp_path: Path) -> None:
    """Offsets are never reused, and the newest record of a key is never lost.

    Both topics get number n at offset n.
    """
    chance = random.Random(3)

    async def check(acknowledged: int) -> int:
        log = await open_it()
        ends, begins = await log.end_offsets(["r", "old"]), await log.begin_offsets(["r", "old"])
        assert min(ends.values()) > acknowledged
        assert max(ends.values()) <= min(ends.values()) + 1, "one append of two may be missing"
        if ends[("old", 0)] != ends[("r", 0)]:  # both at the same number again
            behind = min(ends, key=lambda p: ends[p])
            place = ends[behind]
            await log.append(behind[0], records(str(place), key=b"%d" % (place % 5), time_ms=1))
        end = max(ends.values())
        seen: list[int] = []
        reader = log.read(["r"])
        while not seen or seen[-1] < end - 1:
            for batch in await reader.next():
                assert [int(r.value) for r in batch.records] == list(batch.offsets)
                seen += batch.offsets
        assert seen == sorted(set(seen))
        assert set(range(end - 5, end)) <= set(seen)
        if begins[("old", 0)] < ends[("old", 0)]:
            first = await log.read(["old"]).next(max_batches=1)
            assert first[0].offsets[0] == int(first[0].records[0].value) >= begins[("old", 0)]
        await log.close()
        return end

    first = 0
    for _ in range(6):
        last = _run_and_kill(backend, tmp_path / "log", "sweep", first, chance.randint(10, 60), chance.random() * 0.03)
        first = asyncio.run(check(last))
