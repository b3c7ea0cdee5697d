"""Retention and compaction by the embedded log.

On Kafka the brokers do both (tests/integration/test_kafka_topics.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from log_backends import read_exactly, records, values

from oncue.log import Log, Record, Topic

Open = Callable[[], Awaitable[Log]]
DAY_MS = 24 * 3600 * 1000
pytestmark = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def test_retention_by_age(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"short": Topic(retention_ms=DAY_MS)})
        now = int(time.time() * 1000)
        for name in ("short", "keeps"):
            for age in (5, 3, 2, 0.5, 0):
                await log.append(name, records(f"{age} days", time_ms=now - int(age * DAY_MS)))
        live = log.read(["short"], start="latest")
        freed = await log.housekeep(now)
        assert set(freed) == {"short"}
        assert freed["short"] > 0
        assert values(await read_exactly(log.read(["short"]), 2)) == [b"0.5 days", b"0 days"]
        assert len(await read_exactly(log.read(["keeps"]), 5)) == 5
        assert await log.housekeep(now) == {}
        assert await log.housekeep(now + 10 * DAY_MS)
        assert (await log.append("short", records("next")))[0].first == 5
        assert values(await read_exactly(live, 1)) == [b"next"]
        await log.close()

    asyncio.run(main())


def test_retention_by_size_is_per_partition_and_counts_earlier_records(open_it: Open) -> None:
    async def fill(log: Log, count: int) -> None:
        await asyncio.gather(*[log.append("a", records(b"." * 10_000), p) for _ in range(count) for p in (0, 1)])

    async def main() -> None:
        log = await open_it()
        await log.ensure({"a": Topic(partitions=2, retention_bytes=100_000)})
        await fill(log, 8)
        assert await log.housekeep() == {}
        await log.close()
        log = await open_it()
        await fill(log, 7)
        freed = await log.housekeep()
        assert 2 * 40_000 <= freed["a"] <= 2 * 60_000
        ends, begins = await log.end_offsets(["a"]), await log.begin_offsets(["a"])
        for partition in ((("a", 0)), ("a", 1)):
            assert 9 <= ends[partition] - begins[partition] <= 10
        await fill(log, 3)
        assert (await log.housekeep())["a"] > 0
        await log.append("a", records(b"." * 300_000), 0)
        await log.housekeep()
        begins = await log.begin_offsets(["a"])
        assert begins[("a", 0)] == 18, "a record over the limit is kept until another follows"
        assert begins[("a", 1)] < 18
        await log.close()

    asyncio.run(main())


def test_compaction_keeps_the_newest_of_each_key(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"r": Topic(compact=True)})
        live = log.read(["r"])
        for n in range(40):
            await log.append("r", [Record(b"%d.%d" % (n, k), b"k%d" % k) for k in range(n % 4 + 1)])
        await log.append("r", [Record(b"no key"), Record(b"", b"k1")])  # a tombstone
        end = (await log.end_offsets(["r"]))[("r", 0)]
        assert (await log.housekeep())["r"] > 0
        assert len(await read_exactly(live, end)) == end, "a reader that had caught up received all of them"
        wanted = [b"36.0", b"39.0", b"39.2", b"39.3", b"no key", b""]
        seen = await read_exactly(log.read(["r"]), 5)
        assert values(seen) == wanted[1:]
        assert [s[2] for s in seen] == [end - 6, end - 4, end - 3, end - 2, end - 1], "offsets stay, with gaps"
        from_gap = await read_exactly(log.read(["r"], start={("r", 0): end - 5}), 4)
        assert values(from_gap) == wanted[2:]
        later = int(time.time() * 1000) + 2 * DAY_MS
        assert (await log.housekeep(later))["r"] > 0, "a tombstone goes after a day"
        assert values(await read_exactly(log.read(["r"]), 4)) == wanted[1:5]
        await log.append("r", [Record(b"", b"k0"), Record(b"", b"k2"), Record(b"", b"k3")])
        await log.housekeep(later)
        await log.housekeep(later + 2 * DAY_MS)
        await log.close()
        log = await open_it()
        assert values(await read_exactly(log.read(["r"]), 1)) == [b"no key"]
        assert (await log.append("r", [Record(b"new", b"k0")]))[0].first == end + 3, "the last record's offset is gone"
        assert values(await read_exactly(log.read(["r"]), 2)) == [b"no key", b"new"]
        await log.close()

    asyncio.run(main())


def test_appends_continue_during_housekeeping(open_it: Open) -> None:
    async def main() -> None:
        log = await open_it()
        await log.ensure({"old": Topic(retention_ms=1), "r": Topic(compact=True)})
        await asyncio.gather(*[log.append("old", records(b"." * 5_000, time_ms=1)) for _ in range(3_000)])
        await asyncio.gather(*[log.append("r", [Record(b"." * 500, b"%d" % (n % 7))]) for n in range(3_000)])
        housekeeping = asyncio.ensure_future(log.housekeep())
        appended = 0
        while not housekeeping.done():
            await log.append("other", records(str(appended)))
            appended += 1
        assert housekeeping.result().keys() == {"old", "r"}
        assert appended > 5, "appends ran between the steps of housekeeping"
        assert await log.begin_offsets(["old"]) == await log.end_offsets(["old"])
        assert len(await read_exactly(log.read(["r"]), 7)) == 7
        assert len(await read_exactly(log.read(["other"]), appended)) == appended
        await log.close()

    asyncio.run(main())
