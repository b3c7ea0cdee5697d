"""Child process that works on a log until it is killed.

Prints the acknowledged numbers, one a line.

python log_child.py BACKEND FOLDER append FIRST
    append records FIRST, FIRST + 1 ... to the topic "a"; print the last of each append
python log_child.py BACKEND FOLDER sweep FIRST
    append number n to "r" with one of five keys, with housekeeping all the time
python log_child.py BACKEND FOLDER commit 0
    append one record to "out" for each record of "in", as the group "g"
python log_child.py BACKEND FOLDER repeat 0
    the same with `repeatable`: appends may be repeated
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from log_backends import BACKENDS, records

from oncue.log import Append, Log, Topic


async def append(log: Log, first: int) -> None:
    """Append 1 to 5 records at a time, with up to eight appends in flight."""
    window = asyncio.Semaphore(8)
    place = first
    while True:
        await window.acquire()
        count = place % 5 + 1
        future = log.append("a", records(*[str(n) for n in range(place, place + count)]))
        place += count

        def done(_: object, last: int = place - 1) -> None:
            os.write(1, b"%d\n" % last)
            window.release()

        future.add_done_callback(done)


async def sweep(log: Log, first: int) -> None:
    await log.ensure({"r": Topic(compact=True), "old": Topic(retention_ms=1)})

    async def housekeep() -> None:
        while True:
            await log.housekeep()

    housekeeping = asyncio.ensure_future(housekeep())
    place = first
    while not housekeeping.done():
        both = [
            log.append("old", records(str(place), time_ms=1)),
            log.append("r", records(str(place), key=b"%d" % (place % 5))),
        ]
        await asyncio.gather(*both)
        if place % 2:  # sometimes this leaves nothing of "old"
            await log.housekeep()
        os.write(1, b"%d\n" % place)
        place += 1
    housekeeping.result()


async def commit(log: Log, _: int, repeatable: bool = False) -> None:
    reader = log.read(["in"], group="g")
    while True:
        batches = await reader.next(max_batches=2)
        found = [r for b in batches for r in b.records]
        await log.commit("g", batches, [Append("out", found)], repeatable=repeatable)
        os.write(1, found[-1].value + b"\n")


async def repeat(log: Log, _: int) -> None:
    await commit(log, _, repeatable=True)


async def main() -> None:
    backend, folder, what, first = sys.argv[1:]
    log = await BACKENDS[backend].open(Path(folder))
    await {"append": append, "commit": commit, "repeat": repeat, "sweep": sweep}[what](log, int(first))


asyncio.run(main())
