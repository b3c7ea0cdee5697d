"""Transfers partitions of stateful rules between servers and stream workers.

State is in `oncue.windows`; the new owner resumes from it, so each event is counted once.

    servers: the acting one claims all partitions and marks them BY_SERVERS (server_runner.py)
    stream workers: start when all partitions have a Progress and none has the mark
    hand_over: a server removes the mark, and moves an older `windows.db` into the log

A process claims a partition before it changes the mark or the progress, so that one of several
servers and workers does it, in one transaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from oncue.errors import NotOwner, Undecodable
from oncue.log.base import Append, Log, Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.stateful.changelog_states import BY_SERVERS, PROGRESS, Change, ChangelogStates, records
from oncue.rules.stateful.kafka_runner import GROUP, PartitionFence
from oncue.rules.stateful.record_group import Progress
from oncue.rules.stateful.sqlite_states import SqliteStates
from oncue.rules.task_frames import commit

POLL_S = 1.0
UNREADABLE = (
    "if a newer version wrote it, run that one; if not, stop servers and stream workers, and delete the topic"
    f" {WINDOWS}: it is made again, without the open windows"
)
_log = logging.getLogger(__name__)


async def read_states(log: Log, numbers: Iterable[int] | None = None) -> dict[int, ChangelogStates]:
    """Read the states of these partitions (None: all) from the changelog.

    Raises LogError, Undecodable.
    """
    ends = {number: end for (_, number), end in (await log.end_offsets([WINDOWS])).items()}
    begins = {number: begin for (_, number), begin in (await log.begin_offsets([WINDOWS])).items()}
    wanted = set(ends) if numbers is None else set(numbers)
    found = {number: ChangelogStates() for number in wanted}
    left = {number for number in wanted if ends.get(number, 0) > begins.get(number, 0)}
    if not left:
        return found
    reader = log.read([WINDOWS], start={(WINDOWS, number): end for number, end in ends.items() if number not in left})
    try:
        while left:
            for batch in await reader.next():
                if batch.partition in left:
                    for offset, r in zip(batch.offsets, batch.records, strict=True):
                        try:
                            found[batch.partition].apply_record(r.key, r.value)
                        except Undecodable as e:
                            where = f"{WINDOWS}/{batch.partition} at {offset} cannot be read"
                            raise Undecodable(f"{where}: {e.message}", remedy=UNREADABLE) from None
                    if batch.next_offset >= ends[batch.partition]:
                        left.discard(batch.partition)
    finally:
        await reader.close()
    return found


async def hand_over(log: Log, fence: PartitionFence, path: Path, *, to_workers: bool = True) -> list[int]:
    """Hand partitions over to workers (`to_workers`) or to servers.

    Their states come from the log, or from this server's file. Returns partitions that nobody can
    start: the log has deleted their first matches, and the file with their states is not here.
    Raises LogError.
    """
    begins = {number: begin for (_, number), begin in (await log.begin_offsets([MATCHES])).items()}
    found = await read_states(log)
    store = await asyncio.to_thread(SqliteStates, path) if path.exists() else None
    left: list[int] = []
    try:
        for number, table in found.items():
            place = store.parts.get(number) if store is not None else None
            if table.started:
                if table.by_servers and to_workers:
                    await _release(log, fence, number)
            elif store is not None and place is not None and place.next >= begins.get(number, 0):
                await _hand_over(log, fence, number, place, await asyncio.to_thread(store.entries, number))
            elif begins.get(number, 0) == 0:
                await _hand_over(log, fence, number, Progress(), [])  # repeated firings: same ids
            else:
                left.append(number)
    finally:
        if store is not None:
            await asyncio.to_thread(store.close)
    return left


async def mark_for_servers(log: Log, number: int, table: ChangelogStates) -> None:
    """Mark a claimed partition as run by servers; workers that still have it end.

    Raises LogError, NotOwner.
    """
    changes: list[Change] = [(BY_SERVERS, encode(True))]
    if not table.started:
        changes.append((PROGRESS, encode(tuple(table.progress))))
    if not table.by_servers or not table.started:
        await commit(log, GROUP, _position(number, table.progress), [Append(WINDOWS, records(changes), number)])
        table.apply(changes)


async def start_at_end(log: Log, fence: PartitionFence) -> list[int]:
    """Start partitions that were never handed over at the log's end; return them.

    Raises LogError.
    """
    ends = {number: end for (_, number), end in (await log.end_offsets([MATCHES])).items()}
    missing = [number for number, table in (await read_states(log)).items() if not table.started]
    for number in missing:
        await _hand_over(log, fence, number, Progress(ends.get(number, 0)), [])
    return missing


async def wait_for_handover(log: Log, say: Callable[[str], None]) -> None:
    """Wait until all partitions are handed over to workers. Raises LogError."""
    reported = False
    while missing := sorted(
        n for n, table in (await read_states(log)).items() if table.by_servers or not table.started
    ):
        if not reported:
            which = ", ".join(map(str, missing))
            say(f"waiting until a server hands over the partitions {which} of {MATCHES}: see rules_memory")
        reported = True
        await asyncio.sleep(POLL_S)


async def _hand_over(log: Log, fence: PartitionFence, number: int, place: Progress, entries: list[Change]) -> None:
    await fence.claim(GROUP, MATCHES, number)
    if (await read_states(log, [number]))[number].started:
        return
    changes: list[Change] = [*entries, (PROGRESS, encode(tuple(place)))]
    try:
        await commit(log, GROUP, _position(number, place), [Append(WINDOWS, records(changes), number)])
    except NotOwner as e:
        _log.info("partition %d is handed over by another server: %s", number, e.message)
        return
    _log.info("partition %d starts at offset %d, with %d states", number, place.next, len(entries))


async def _release(log: Log, fence: PartitionFence, number: int) -> None:
    await fence.claim(GROUP, MATCHES, number)
    table = (await read_states(log, [number]))[number]
    if table.by_servers:
        unmark = Record(b"", encode(BY_SERVERS))
        try:
            await commit(
                log,
                GROUP,
                _position(number, table.progress),
                [Append(WINDOWS, [unmark], number)],
            )
        except NotOwner as e:
            _log.info("partition %d is released by another server: %s", number, e.message)


def _position(number: int, place: Progress) -> list[RecordBatch]:
    """Return an empty batch at the progress, for the commit.

    It makes the log refuse the commit when another process has claimed the partition. At offset 0
    nothing is committed: the group must not be ahead of the progress.
    """
    return [RecordBatch(MATCHES, number, (), (), place.next)] if place.next else []
