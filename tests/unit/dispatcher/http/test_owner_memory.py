"""Bodies of one owner wait for memory; those of others do not."""

from __future__ import annotations

import asyncio

from oncue.dispatcher.http.owner_memory import OwnerMemory

MIB = 1 << 20


class _Bodies:
    """Bodies that are in memory until they are dropped."""

    def __init__(self) -> None:
        self._memory = OwnerMemory(64 * MIB)
        self.held: list[str] = []
        self._drop: dict[str, asyncio.Event] = {}

    async def send(self, owner: str, name: str, size: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._hold(owner, name, size))
        await asyncio.sleep(0)
        return task

    async def _hold(self, owner: str, name: str, size: int) -> None:
        self._drop[name] = asyncio.Event()
        async with self._memory.room(owner, size):
            self.held.append(name)
            await self._drop[name].wait()
            self.held.remove(name)

    async def drop(self, name: str) -> None:
        self._drop[name].set()
        for _ in range(5):
            await asyncio.sleep(0)


def test_bodies_wait_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        bodies = _Bodies()
        for name in "abcd":
            await bodies.send("ada", name, 30 * MIB)
        await bodies.send("ada", "small", 1_000)
        await bodies.send("bob", "other", 60 * MIB)
        assert bodies.held == ["a", "b", "small", "other"]
        await bodies.drop("b")
        assert bodies.held == ["a", "small", "other", "c"]
        await bodies.drop("a")
        assert bodies.held == ["small", "other", "c", "d"]
        for name in ("c", "d", "small", "other"):
            await bodies.drop(name)
        assert await bodies.send("ada", "larger than all", 100 * MIB)
        assert bodies.held == ["larger than all"]
        await bodies.drop("larger than all")

    asyncio.run(main())


def test_a_caller_that_has_gone_keeps_no_room() -> None:
    async def main() -> None:
        bodies = _Bodies()
        first = await bodies.send("ada", "a", 60 * MIB)
        gone = await bodies.send("ada", "b", 60 * MIB)
        last = await bodies.send("ada", "c", 60 * MIB)
        gone.cancel()
        first.cancel()
        await asyncio.gather(first, gone, return_exceptions=True)
        await bodies.drop("c")
        await asyncio.wait_for(last, 10)

    asyncio.run(main())
