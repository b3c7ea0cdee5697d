"""What agents ask for while many tasks are in flight."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from oncue.dispatcher.bridge.effects import ReadPart
from oncue.dispatcher.bridge.transfers import BlobTransfers
from oncue.protocol.payload import REF

SHA, OTHERS = "a" * 64, "b" * 64
HELD_S = 0.1  # of CPU time: a loaded machine adds nothing to it
CALL, SMALL = SimpleNamespace(function="c" * 64), [SimpleNamespace(args=b"small")]


class Group:
    """A group of one task."""

    __slots__ = ("call", "tasks")

    def __init__(self, args: bytes) -> None:
        self.call, self.tasks = CALL, [SimpleNamespace(args=args)] if args else SMALL


class View:
    """A view that knows nothing yet."""

    async def function_for(self, *of: str) -> tuple[None, bytes, bool]:
        return None, b"", False

    async def has_open_argument(self, *of: str) -> bool:
        return False


def asked(groups: int, wanted: str) -> tuple[str, float]:
    """Ask for a blob that the last task names; return the refusal, and how long the loop was held."""

    async def body() -> tuple[str, float]:
        in_flight = {n: Group(b"") for n in range(groups)} | {-1: Group(REF + SHA.encode())}
        channel = cast(Any, SimpleNamespace(endpoint="ep", backlogged=False, in_flight=in_flight))
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        blobs = SimpleNamespace(size=lambda sha: 1, part=lambda *of: b"x")
        registry, log = SimpleNamespace(endpoint=lambda e: None), SimpleNamespace(shared=False)
        context = cast(Any, SimpleNamespace(view=View(), blobs=blobs, registry=registry, log=log))
        tasks = []
        transfers = BlobTransfers(
            context,
            lambda work: tasks.append(asyncio.ensure_future(work)),
            lambda endpoint, part, body: answered.set_result(cast(Any, part).why),
            lambda *of, **more: None,
        )
        transfers.read(channel, ReadPart(wanted, 0))
        longest, at = 0.0, time.thread_time()
        while not answered.done():
            await asyncio.sleep(0.001)
            longest, at = max(longest, time.thread_time() - at), time.thread_time()
        return await answered, longest

    return asyncio.run(body())


def test_a_blob_of_a_task_in_flight_is_answered() -> None:
    assert asked(3, SHA)[0] == ""
    assert asked(3_000, SHA)[0] == ""
    assert "no blob" in asked(3, OTHERS)[0]


def test_a_search_among_many_tasks_does_not_hold_the_loop() -> None:
    why, held_s = asked(500_000, OTHERS)
    assert "no blob" in why
    assert held_s < HELD_S
