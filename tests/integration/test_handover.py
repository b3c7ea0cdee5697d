"""Stateful rules move from a server's file to the changelog and between runners.

Servers and workers take turns; no event is counted twice or lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.errors import NotOwner
from oncue.log import Log, Record, Topic, open_log
from oncue.log.base import RecordBatch as LogBatch
from oncue.protocol.codec import encode
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.operators.records import ClosedWindow, MatchesRecord
from oncue.rules.stateful.changelog_states import records
from oncue.rules.stateful.handover import hand_over, mark_for_servers, read_states, start_at_end
from oncue.rules.stateful.record_group import Progress
from oncue.rules.stateful.sqlite_states import SqliteRecordGroup, SqliteStates
from oncue.rules.testing.simulation import InMemoryStates
from tests.unit.rules.stateful.test_fold import folded, streams

PARTITIONS = 2


class Fence:
    """A fence; `refuse`: another process claims after this claim."""

    def __init__(self, refuse: Callable[[], None] = lambda: None) -> None:
        self.claimed: list[int] = []
        self._refuse = refuse

    async def claim(self, group: str, topic: str, partition: int) -> None:
        self.claimed.append(partition)
        self._refuse()


def with_log(folder: Path, body: Callable[[Log], Awaitable[None]]) -> None:
    async def run() -> None:
        log = await open_log(f"sqlite://{folder / 'log'}")
        try:
            await log.ensure(
                {MATCHES: Topic(partitions=PARTITIONS), WINDOWS: Topic(partitions=PARTITIONS, compact=True)}
            )
            await body(log)
        finally:
            await log.close()

    asyncio.run(run())


def stored(path: Path, place: Progress) -> None:
    """Make a file with states of the first partition up to here."""
    store, group = SqliteStates(path), SqliteRecordGroup()
    group.next[0] = place
    store.store(group)
    store.close()


def batch(stream: list[MatchesRecord], first: int, last: int) -> LogBatch:
    return LogBatch(MATCHES, 0, range(first, last + 1), [Record(encode(r)) for r in stream[first : last + 1]])


@settings(max_examples=15, deadline=None)
@given(stream=streams(), data=st.data())
def test_windows_are_the_same_after_any_handovers(
    stream: list[MatchesRecord], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("handover")
    path = folder / "windows.db"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), min_size=1, max_size=3)))
    found: list[ClosedWindow] = []

    async def body(log: Log) -> None:
        await log.append(MATCHES, [Record(encode(r)) for r in stream], 0)
        at, runner = 0, "file"
        for cut in [*cuts, len(stream)]:
            if at < cut and runner == "file":
                store = SqliteStates(path)
                assert store.parts.get(0, Progress()).next == at
                group = store.fold_batches([batch(stream, at, cut - 1)])
                store.store(group)
                store.close()
                found.extend(c for _, _, c in group.closed)
            elif at < cut:
                table = (await read_states(log))[0]
                assert table.progress.next == at
                group, changes = table.fold([batch(stream, at, cut - 1)])
                await log.append(WINDOWS, records(changes), 0)
                found.extend(c for _, _, c in group.closed)
            at = cut
            runner = await change(log, runner)

    async def change(log: Log, runner: str) -> str:
        if runner == "workers":
            for number, table in (await read_states(log)).items():
                await mark_for_servers(log, number, table)
            assert await hand_over(log, Fence(), path, to_workers=False) == []  # another server begins: no change
            assert [table.by_servers for table in (await read_states(log)).values()] == [True] * PARTITIONS
            return "servers"
        assert await hand_over(log, Fence(), path) == []
        assert await hand_over(log, Fence(), path) == []  # once is enough
        assert not any(table.by_servers for table in (await read_states(log)).values())
        return "workers"

    with_log(folder, body)
    assert found == folded(InMemoryStates(), enumerate(stream))


def test_no_runner_starts_where_the_log_has_deleted_the_first_matches(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        await log.append(MATCHES, [Record(b"x" * 100) for _ in range(10)], 0)
        await log.truncate(MATCHES, 0, 10)
        await log.append(MATCHES, [Record(b"x")], 0)
        begins = await log.begin_offsets([MATCHES])
        assert begins[MATCHES, 0] > 0
        path = tmp_path / "windows.db"
        assert await hand_over(log, Fence(), path) == [0]
        stored(path, Progress(begins[MATCHES, 0] - 1))  # of a server that has not run them for long
        assert await hand_over(log, Fence(), path) == [0]
        assert await start_at_end(log, Fence()) == [0]
        assert (await read_states(log))[0].progress == Progress(11)
        assert await hand_over(log, Fence(), path) == []
        assert await start_at_end(log, Fence()) == []

    with_log(tmp_path, body)


def test_one_of_two_servers_hands_over(tmp_path: Path) -> None:
    async def body(log: Log) -> None:
        real, path = log.commit, tmp_path / "windows.db"

        async def refused(*given: Any, **more: Any) -> Any:
            raise NotOwner("another server has claimed it")

        log.commit = refused  # type: ignore[method-assign]
        assert await hand_over(log, Fence(), path) == []
        assert not any(table.started for table in (await read_states(log)).values())
        log.commit = real  # type: ignore[method-assign]
        stored(path, Progress(5, 7))
        assert await hand_over(log, Fence(), tmp_path / "none.db") == []
        assert (await read_states(log))[0].progress == Progress(0)
        assert await hand_over(log, Fence(), path) == []
        assert (await read_states(log))[0].progress == Progress(
            0
        )  # the first one counts: repeated tasks have the same ids

    with_log(tmp_path, body)
