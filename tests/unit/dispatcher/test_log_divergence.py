"""find_divergence: a view is compared with a log that lost, changed or kept records."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from oncue.dispatcher.log_divergence import Divergence, find_divergence, newest_event_us, read_records
from oncue.log import Log, Record, RecordBatch, Topic, open_log
from oncue.protocol.topics import EVENTS
from oncue.view import View

PARTITIONS = 3


def event(name: str, time_ms: int = 1_000) -> Record:
    return Record(
        b'{"specversion":"1.0","type":"t","source":"/s","id":"%s"}' % name.encode(), name.encode(), (), time_ms
    )


async def filled(folder: Path, names: str) -> Log:
    log = await open_log(f"sqlite://{folder}")
    await log.ensure({EVENTS: Topic(partitions=PARTITIONS)})
    for name in names:
        await log.append(EVENTS, [event(name)])
    return log


async def apply_all(log: Log, view: View) -> None:
    ends = await log.end_offsets([EVENTS])
    reader = log.read([EVENTS])
    while any(view.positions().get(place, 0) < end for place, end in ends.items()):
        await view.apply(await reader.next())
    await reader.close()


def compare(
    path: Path, before: str, after: str, between: Callable[[Log], Awaitable[None]] | None = None
) -> Divergence | None:
    """Apply a log of events to a view; return how the view differs from a second log."""

    async def work() -> Divergence | None:
        first = await filled(path / "first", before)
        view = View.open(path / "view.db")
        await apply_all(first, view)
        await first.close()
        second = await filled(path / "second", after)
        if between is not None:
            await between(second)
        try:
            return await find_divergence(second, view)
        finally:
            await second.close()
            await view.close()

    return asyncio.run(work())


def test_the_same_records_do_not_differ(tmp_path: Path) -> None:
    assert compare(tmp_path, "abcdefgh", "abcdefgh") is None


def test_a_log_that_went_on_does_not_differ(tmp_path: Path) -> None:
    assert compare(tmp_path, "abcd", "abcdefgh") is None


def test_a_shorter_log_differs_by_the_missing_records(tmp_path: Path) -> None:
    found = compare(tmp_path, "abcdefgh", "abcde")
    assert found is not None
    assert found.missing == {EVENTS: 3}


def test_an_empty_log_differs(tmp_path: Path) -> None:
    found = compare(tmp_path, "abc", "")
    assert found is not None
    assert found.missing == {EVENTS: 3}


def test_another_record_in_one_partition_differs(tmp_path: Path) -> None:
    found = compare(tmp_path, "a", "a")
    assert found is None

    async def work() -> Divergence | None:
        log = await filled(tmp_path / "third", "")
        await log.append(EVENTS, [event("a", time_ms=2_000)])
        view = View.open(tmp_path / "view.db")
        try:
            return await find_divergence(log, view)
        finally:
            await view.close()
            await log.close()

    other = asyncio.run(work())
    assert other is not None
    assert "another record" in other.reason


def test_truncated_records_are_not_compared(tmp_path: Path) -> None:
    async def truncate_all(log: Log) -> None:
        for (topic, partition), end in (await log.end_offsets([EVENTS])).items():
            await log.truncate(topic, partition, end)

    assert compare(tmp_path, "abcdefgh", "hgfedcba", truncate_all) is None


def test_a_view_of_an_earlier_version_is_compared_by_its_positions(tmp_path: Path) -> None:
    async def work() -> None:
        log = await filled(tmp_path / "log", "abc")
        view = View.open(tmp_path / "view.db")
        await apply_all(log, view)
        view._db.execute("DELETE FROM last_record")
        assert await find_divergence(log, view) is None
        await view.close()
        await log.close()

    asyncio.run(work())


def test_records_are_found_by_their_offsets(tmp_path: Path) -> None:
    async def work() -> None:
        log = await filled(tmp_path / "log", "")
        await log.append(EVENTS, [event(c, 5_000 + n) for n, c in enumerate("abc")], 1)  # one stored batch
        found = await read_records(log, {(EVENTS, 1): 1})
        assert [r.key for r in found.values()] == [b"b"]
        assert await newest_event_us(log) == 5_002_000
        await log.close()

    asyncio.run(work())


def test_a_batch_applied_in_two_halves_leaves_the_last_record(tmp_path: Path) -> None:
    async def work() -> None:
        view = View.open(tmp_path / "view.db")
        await view.apply([RecordBatch(EVENTS, 0, range(2), [event("a"), event("b")])])
        await view.apply([RecordBatch(EVENTS, 0, range(1, 3), [event("b"), event("c")])])
        (mark,) = (await view.last_records()).values()
        assert mark[0] == 2
        await view.close()

    asyncio.run(work())
