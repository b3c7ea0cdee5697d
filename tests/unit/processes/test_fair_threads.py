"""FairThreads: owners take turns; what waits is cancelled at the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from oncue.processes.fair_threads import FairThreads, on_behalf_of


def test_one_piece_of_each_owner_in_turn() -> None:
    asyncio.run(_take_turns())


async def _take_turns() -> None:
    threads, begun, go = FairThreads(1, "test"), list[str](), threading.Event()

    async def do(owner: str) -> None:
        on_behalf_of.set(owner)
        await threads.run(lambda: (go.wait(10), begun.append(owner)))

    asked = [asyncio.create_task(do(owner)) for owner in ("many",) * 20 + ("few", "few")]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*asked)
    assert begun[:5] == ["many", "many", "few", "many", "few"]
    assert len(begun) == 22
    threads.close()


def test_errors_and_callers_that_have_gone() -> None:
    asyncio.run(_fail_and_go())


async def _fail_and_go() -> None:
    threads, go = FairThreads(1, "test"), threading.Event()
    held = asyncio.create_task(threads.run(lambda: go.wait(10)))
    await asyncio.sleep(0)
    gone, wrong = asyncio.create_task(threads.run(lambda: 1 / 0)), asyncio.create_task(threads.run(lambda: 1 / 0))
    await asyncio.sleep(0)
    gone.cancel()
    go.set()
    with pytest.raises(ZeroDivisionError):
        await wrong
    assert await held
    assert gone.cancelled()
    threads.close()


def test_what_waits_at_the_end_is_cancelled() -> None:
    asyncio.run(_close_while_work_waits())


async def _close_while_work_waits() -> None:
    threads, go = FairThreads(1, "test"), threading.Event()
    begun = threading.Event()
    held = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10))))
    await asyncio.to_thread(begun.wait, 10)
    waiting = asyncio.create_task(threads.run(lambda: 1))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(threads.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await asyncio.gather(held, closing)
