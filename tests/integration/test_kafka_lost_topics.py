"""Topics that are deleted, made anew or cut under a running process: nothing new is passed over.

What such a topic had is gone. But what is appended to it afterwards is read, at the latest when the
log is opened again; and until then the log says that it is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from oncue.errors import LogError
from oncue.log import Append, Log, Reader, Record, RecordBatch, Topic, open_log
from tests.kafka.anew import make_anew

WAIT_S = 60.0


@pytest.fixture
def url(kafka: tuple[str, str], tmp_path: Path) -> str:
    return f"kafka://{kafka[0]}?prefix=lost{abs(hash(tmp_path))}.&session_s=2"


def full(url: str, topic: str) -> tuple[str, str]:
    """Return (broker's address, the topic's full name)."""
    return url.removeprefix("kafka://").partition("?")[0], url.partition("prefix=")[2].partition("&")[0] + topic


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Log]:
    log = await open_log(url)
    try:
        yield log
    finally:
        await log.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.02)


async def fill(log: Log, values: list[bytes]) -> None:
    for value in values:
        await log.append("a", [Record(value)])


async def take(reader: Reader, count: int) -> list[RecordBatch]:
    """Return batches with this many records."""
    found: list[RecordBatch] = []
    async with asyncio.timeout(WAIT_S):
        while sum(len(b.records) for b in found) < count:
            found += await reader.next()
    return found


def values(batches: list[RecordBatch]) -> list[bytes]:
    return [r.value for b in batches for r in b.records]


OLD = [b"old %d" % n for n in range(5)]
NEW = [b"new %d" % n for n in range(20)]  # more than a reader has read of the old topic


def test_a_reader_reads_nothing_of_a_topic_made_anew_and_the_log_says_so(url: str) -> None:
    async def main() -> None:
        async with opened(url) as log, opened(url) as other:
            await log.ensure({"a": Topic()})
            await fill(log, OLD)
            reader = log.read(["a"], start="earliest")
            assert values(await take(reader, 5)) == OLD
            assert log.lost() == log.trouble() == ""

            await make_anew(*full(url, "a"))
            await fill(other, NEW)

            await until(log.lost)
            assert "deleted and made anew" in log.lost()
            assert log.trouble() == log.lost()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.next(), 1)
        async with opened(url) as again:
            assert again.lost() == ""
            assert values(await take(again.read(["a"], start="earliest"), 20)) == NEW

    asyncio.run(main())


@pytest.mark.parametrize("repeatable", [True, False], ids=["append, then commit", "transaction"])
def test_a_groups_offset_of_the_earlier_topic_does_not_count_in_the_new_one(url: str, repeatable: bool) -> None:
    """The old one's last records are processed, and committed, after it was made anew."""

    async def main() -> None:
        async with opened(url) as log:
            await fill(log, OLD)
            batches = await take(log.read(["a"], group="g"), 5)
            await make_anew(*full(url, "a"))
            await log.commit("g", batches, [Append("out", [Record(b"done")])], repeatable=repeatable)
            await fill(log, NEW)
            await until(log.lost)
            with pytest.raises(LogError, match="nothing is committed"):
                await log.commit("g", batches)
        async with opened(url) as again:
            assert await again.committed("g") == {}
            assert values(await take(again.read(["a"], group="g"), 20)) == NEW

    asyncio.run(main())


def test_a_topic_that_nobody_reads_is_watched_too(url: str) -> None:
    async def main() -> None:
        async with opened(url) as log:
            await log.ensure({"a": Topic(), "b": Topic()})
            await make_anew(*full(url, "a"))
            await until(log.lost)
            assert full(url, "a")[1] in log.lost()

    asyncio.run(main())


def test_a_topic_that_ends_before_a_readers_position_is_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last records are gone: of a broker that lost its disk, say."""
    monkeypatch.setattr("oncue.log.kafka.log.TROUBLE_S", 0.5)

    async def main() -> None:
        async with opened(url) as log:
            await fill(log, OLD)
            reader = log.read(["a"], start={("a", 0): 9})
            await until(log.lost)
            assert "a/0 ends at 5, and 9 records of it were read" in log.lost()
            await reader.close()

    asyncio.run(main())


def test_a_group_that_is_ahead_of_the_end_reads_from_the_beginning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with opened(url) as log:
            await fill(log, OLD)
            await log.commit("g", [RecordBatch("a", 0, (), (), 9)])
            assert await log.committed("g") == {("a", 0): 9}
            assert values(await take(log.read(["a"], group="g"), 5)) == OLD

    asyncio.run(main())
    assert "ends at 5, and the group g has read 9 records: it reads all again" in caplog.text


def test_records_that_were_deleted_before_they_were_read_are_counted(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By retention, or by an administrator. The rest is read."""

    async def main() -> None:
        async with opened(url) as log:
            await fill(log, [*OLD, *NEW])
            await log.truncate("a", 0, 15)
            assert values(await take(log.read(["a"], start={("a", 0): 5}), 10)) == NEW[10:]
            assert log.lost() == ""
            told = "up to 10 records of a/0 were deleted before they were read, from 5 on"
            assert told in caplog.text
            caplog.clear()
            assert values(await take(log.read(["a"], start="earliest"), 10)) == NEW[10:]
            assert "deleted before" not in caplog.text

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_a_broker_that_answers_late_does_not_make_the_log_lost(url: str) -> None:
    """A topic just made is not known to all at once; nor are two looks at it equal by chance."""

    async def main() -> None:
        async with opened(url) as log:
            readers = []
            for n in range(10):
                await log.ensure({f"t{n}": Topic(partitions=3)})
                readers.append(log.read([f"t{n}"], start="earliest"))
                await log.append(f"t{n}", [Record(b"x", key=b"k")])
            for reader in readers:
                assert values(await take(reader, 1)) == [b"x"]
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert log.lost() == ""
                await asyncio.sleep(0.1)

    asyncio.run(main())
