"""From one host of rules with memory to the other: their states go along, so that each event is counted once.

    windows.db of a server ──hand_over──► oncue.windows ──► stream workers (they begin where all partitions have a Place)
    windows.db of a server ◄──take_back── oncue.windows     (its records are deleted: workers that are left end)

Who moves a partition claims it first, so that of several servers and workers one does it, whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from oncue.errors import NotOwner
from oncue.log.base import Append, Batch, Log, Record
from oncue.messages import MATCHES, WINDOWS, encode
from oncue.rules.firing import commit
from oncue.rules.stream_host import GROUP, Fence
from oncue.rules.window_group import Place
from oncue.rules.window_store import WindowStore
from oncue.rules.window_table import CLAIM, PLACE, Change, WindowTable, records

LOOK_S = 1.0
_log = logging.getLogger(__name__)


async def tables(log: Log, numbers: Iterable[int] | None = None) -> dict[int, WindowTable]:
    """Of these partitions (None: all), as the changelog has them now."""
    ends = {number: end for (_, number), end in (await log.end_offsets([WINDOWS])).items()}
    begins = {number: begin for (_, number), begin in (await log.begin_offsets([WINDOWS])).items()}
    wanted = set(ends) if numbers is None else set(numbers)
    found = {number: WindowTable() for number in wanted}
    left = {number for number in wanted if ends.get(number, 0) > begins.get(number, 0)}
    if not left:
        return found
    reader = log.read([WINDOWS], start={(WINDOWS, number): end for number, end in ends.items() if number not in left})
    try:
        while left:
            for batch in await reader.next():
                if batch.partition in left:
                    for r in batch.records:
                        found[batch.partition].put(r.key, r.value)
                    if batch.next_offset >= ends[batch.partition]:
                        left.discard(batch.partition)
    finally:
        await reader.close()
    return found


async def hand_over(log: Log, fence: Fence, path: Path) -> list[int]:
    """Give the workers what this server's file (if it is there) has of each partition that they do not have. The partitions
    that nobody can begin on so far: the log has forgotten their first matches, and the file is not here. Raises LogError."""
    begins = {number: begin for (_, number), begin in (await log.begin_offsets([MATCHES])).items()}
    missing = [number for number, table in (await tables(log)).items() if not table.placed]
    if not missing:
        return []
    store = await asyncio.to_thread(WindowStore, path) if path.exists() else None
    left: list[int] = []
    try:
        for number in missing:
            place = store.parts.get(number) if store is not None else None
            if store is not None and place is not None and place.next >= begins.get(number, 0):
                await _give(log, fence, number, place, await asyncio.to_thread(store.entries, number))
            elif begins.get(number, 0) == 0:
                await _give(log, fence, number, Place(), [])  # what fires again has the same ids
            else:
                left.append(number)
    finally:
        if store is not None:
            await asyncio.to_thread(store.close)
    return left


async def begin_anew(log: Log, fence: Fence) -> list[int]:
    """Let workers begin at the log's end where nobody has handed over. Which partitions. Raises LogError."""
    ends = {number: end for (_, number), end in (await log.end_offsets([MATCHES])).items()}
    missing = [number for number, table in (await tables(log)).items() if not table.placed]
    for number in missing:
        await _give(log, fence, number, Place(ends.get(number, 0)), [])
    return missing


async def begun(log: Log, say: Callable[[str], None]) -> None:
    """Until all partitions have been handed over. Raises LogError."""
    told = False
    while missing := sorted(number for number, table in (await tables(log)).items() if not table.placed):
        if not told:
            which = ", ".join(map(str, missing))
            say(f"waiting until a server hands over the partitions {which} of {MATCHES}: see rules_memory")
        told = True
        await asyncio.sleep(LOOK_S)


async def _give(log: Log, fence: Fence, number: int, place: Place, entries: list[Change]) -> None:
    await fence.claim(GROUP, MATCHES, number)
    if (await tables(log, [number]))[number].placed:
        return
    changes: list[Change] = [*entries, (PLACE, encode(tuple(place)))]
    try:
        await commit(log, GROUP, _at(number, place), [Append(WINDOWS, records(changes), number)])
    except NotOwner as e:
        _log.info("partition %d is handed over by another server: %s", number, e.message)
        return
    _log.info("partition %d is the stream workers' from offset %d on, with %d states", number, place.next, len(entries))


async def take_back(log: Log, fence: Fence, path: Path) -> int:
    """Put what the workers had into this server's file; they have nothing of it any more. How many partitions. Raises LogError,
    NotOwner."""
    wanted = [number for number, table in (await tables(log)).items() if table.placed]
    if not wanted:
        return 0
    store = await asyncio.to_thread(WindowStore, path)
    try:
        for number in wanted:
            await fence.claim(GROUP, MATCHES, number)
            table = (await tables(log, [number]))[number]
            if not table.placed:
                continue
            await asyncio.to_thread(store.take_over, number, table.place, list(table.entries()))
            gone = [Record(b"", encode(key)) for key, _ in table.entries() if key != CLAIM]
            await commit(log, GROUP, _at(number, table.place), [Append(WINDOWS, gone, number)])
            _log.info("partition %d is this server's from offset %d on", number, table.place.next)
    finally:
        await asyncio.to_thread(store.close)
    return len(wanted)


def _at(number: int, place: Place) -> list[Batch]:
    """So that the commit is the partition's, and refused when another has claimed it. At the very beginning there is nothing
    to keep apart, and the group may not be ahead of the place."""
    return [Batch(MATCHES, number, (), (), place.next)] if place.next else []
