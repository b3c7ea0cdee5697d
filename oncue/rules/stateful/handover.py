"""Who begins on a partition of rules with memory where the log is shared, and from where: their states are in `oncue.windows`,
so whoever runs them next goes on with all of them, and each event is counted once.

    servers: the one that acts takes all partitions, and marks them as kept (server_runner.py)
    stream workers: they begin where all partitions have a Place and none is kept
    hand_over: a server that leaves them to workers takes the mark away; what is in a windows.db of before goes into the log

Who changes a partition's mark or place claims it first, so that of several servers and workers one does it, whole or not at
all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from oncue.errors import NotOwner
from oncue.log.base import Append, Log, Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.stateful.changelog_states import BY_SERVERS, PROGRESS, Change, ChangelogStates, records
from oncue.rules.stateful.kafka_runner import GROUP, PartitionFence
from oncue.rules.stateful.record_group import Progress
from oncue.rules.stateful.sqlite_states import SqliteStates
from oncue.rules.task_frames import commit

LOOK_S = 1.0
_log = logging.getLogger(__name__)


async def read_states(log: Log, numbers: Iterable[int] | None = None) -> dict[int, ChangelogStates]:
    """Of these partitions (None: all), as the changelog has them now."""
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
                    for r in batch.records:
                        found[batch.partition].apply_record(r.key, r.value)
                    if batch.next_offset >= ends[batch.partition]:
                        left.discard(batch.partition)
    finally:
        await reader.close()
    return found


async def hand_over(log: Log, fence: PartitionFence, path: Path, *, to_workers: bool = True) -> list[int]:
    """Let workers begin (`to_workers`; else servers): where the log has the states, or with this server's file of before, if it
    is there. The partitions that nobody can begin on so far: the log has forgotten their first matches, and the file is not
    here. Raises LogError."""
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
                await _hand_over(log, fence, number, Progress(), [])  # what fires again has the same ids
            else:
                left.append(number)
    finally:
        if store is not None:
            await asyncio.to_thread(store.close)
    return left


async def mark_for_servers(log: Log, number: int, table: ChangelogStates) -> None:
    """This server, which has claimed the partition, runs it: workers that are left with it end. Raises LogError, NotOwner."""
    changes: list[Change] = [(BY_SERVERS, encode(True))]
    if not table.started:
        changes.append((PROGRESS, encode(tuple(table.progress))))
    if not table.by_servers or not table.started:
        await commit(log, GROUP, _position(number, table.progress), [Append(WINDOWS, records(changes), number)])
        table.apply(changes)


async def start_at_end(log: Log, fence: PartitionFence) -> list[int]:
    """Let workers begin at the log's end where nobody has handed over. Which partitions. Raises LogError."""
    ends = {number: end for (_, number), end in (await log.end_offsets([MATCHES])).items()}
    missing = [number for number, table in (await read_states(log)).items() if not table.started]
    for number in missing:
        await _hand_over(log, fence, number, Progress(ends.get(number, 0)), [])
    return missing


async def wait_for_handover(log: Log, say: Callable[[str], None]) -> None:
    """Until all partitions are the workers'. Raises LogError."""
    told = False
    while missing := sorted(
        n for n, table in (await read_states(log)).items() if table.by_servers or not table.started
    ):
        if not told:
            which = ", ".join(map(str, missing))
            say(f"waiting until a server hands over the partitions {which} of {MATCHES}: see rules_memory")
        told = True
        await asyncio.sleep(LOOK_S)


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
    _log.info("partition %d begins at offset %d, with %d states", number, place.next, len(entries))


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
            _log.info("partition %d is let go by another server: %s", number, e.message)


def _position(number: int, place: Progress) -> list[RecordBatch]:
    """So that the commit is the partition's, and refused when another has claimed it. At the very beginning there is nothing
    to keep apart, and the group may not be ahead of the place."""
    return [RecordBatch(MATCHES, number, (), (), place.next)] if place.next else []
