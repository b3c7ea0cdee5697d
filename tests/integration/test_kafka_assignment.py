"""Kafka groups that divide partitions: joining, leaving, expired sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from oncue.log import Assignment, Log, Topic, open_log

ALL = frozenset(range(16))
MEMBER = """
import asyncio, sys
from oncue.log import open_log

async def main():
    log = await open_log(sys.argv[1])
    assignment = log.join_group("control", "owners")
    while True:
        held = await assignment.next()
        print(*sorted(held), assignment.is_exclusive(), flush=True)

asyncio.run(main())
"""


class Member:
    """A group member and its latest partitions."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment, self.held = assignment, frozenset[int]()
        self.changed = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            self.held = await self.assignment.next()
            self.changed.set()

    async def until(self, what: Callable[[frozenset[int]], bool]) -> frozenset[int]:
        async with asyncio.timeout(60):
            while not what(self.held):
                self.changed.clear()
                await self.changed.wait()
        return self.held

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.assignment.close()


async def _log(url: str) -> Log:
    log = await open_log(url)
    await log.ensure({"control": Topic(partitions=len(ALL))})
    return log


def _url(kafka: tuple[str, str], tmp_path: Path) -> str:
    return f"kafka://{kafka[0]}?prefix=s{abs(hash(tmp_path))}.&session_s=2"


def test_partitions_are_divided_as_members_join_and_leave(kafka: tuple[str, str], tmp_path: Path) -> None:
    async def main() -> None:
        logs = [await _log(_url(kafka, tmp_path)) for _ in range(3)]
        one = Member(logs[0].join_group("control", "owners"))
        assert await one.until(lambda held: held == ALL)
        two = Member(logs[1].join_group("control", "owners"))
        theirs = await two.until(lambda held: len(held) == 8)
        kept = await one.until(lambda held: len(held) == 8)
        assert not kept & theirs, "each partition has one member"
        three = Member(logs[2].join_group("control", "owners"))
        await three.until(lambda held: len(held) >= 5)
        after = [await one.until(lambda held: len(held) < 8), await two.until(lambda held: len(held) < 8)]
        assert after[0] < kept, "the assignment is sticky"
        assert after[1] < theirs
        assert frozenset().union(*after, three.held) == ALL
        await one.leave()
        await two.until(lambda held: len(held) == 8)
        await three.until(lambda held: len(held) == 8)
        await two.leave()
        assert await three.until(lambda held: held == ALL)
        await asyncio.gather(*[log.close() for log in logs])

    asyncio.run(main())


def test_a_member_stopped_past_its_session_loses_its_partitions(kafka: tuple[str, str], tmp_path: Path) -> None:
    async def main() -> None:
        log = await _log(_url(kafka, tmp_path))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MEMBER, _url(kafka, tmp_path), stdout=subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            async with asyncio.timeout(60):
                assert (await child.stdout.readline()).split()[:-1] == [b"%d" % n for n in range(16)]
                here = Member(log.join_group("control", "owners"))
                await here.until(lambda held: len(held) == 8)
                assert len((await child.stdout.readline()).split()) == 9
                os.kill(child.pid, signal.SIGSTOP)
                assert await here.until(lambda held: held == ALL)
                os.kill(child.pid, signal.SIGCONT)
                assert len(await here.until(lambda held: len(held) == 8)) == 8
                line = (await child.stdout.readline()).split()
                assert line[-1] == b"False", "it lost its partitions and is not exclusive until the next heartbeat"
        finally:
            child.kill()
            await child.wait()
        await log.close()

    asyncio.run(main())
