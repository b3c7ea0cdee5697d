"""A process of its own that works on a log until it is killed, and prints what was acknowledged, a number a line.

python log_child.py BACKEND FOLDER append FIRST     records FIRST, FIRST + 1 ... to the topic "a"; prints the last of each
python log_child.py BACKEND FOLDER commit 0         for each record of "in" one to "out", as the group "g"
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from log_backends import BACKENDS, records

from oncue.log import Append, Log


async def append(log: Log, first: int) -> None:
    """Appends of 1 to 5 records, up to eight under way."""
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


async def commit(log: Log, _: int) -> None:
    reader = log.read(["in"], group="g")
    while True:
        batches = await reader.next(max_batches=2)
        found = [r for b in batches for r in b.records]
        await log.commit("g", batches, [Append("out", found)])
        os.write(1, found[-1].value + b"\n")


async def main() -> None:
    backend, folder, what, first = sys.argv[1:]
    log = await BACKENDS[backend].open(Path(folder))
    await {"append": append, "commit": commit}[what](log, int(first))


asyncio.run(main())
