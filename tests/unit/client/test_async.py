"""Tasks and clients in an event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from oncue import errors
from oncue.client import Client
from oncue.client.async_client import AsyncClient
from tests.unit.client.client_server import Server


def square(x: int) -> int:
    return x * x


def refuse(x: int) -> int:
    raise ValueError(f"not {x}")


def large(size: int) -> bytes:
    return b"x" * size


def test_await_gives_the_value(client: Client) -> None:
    async def main() -> None:
        assert await client.submit(square, 3) == 9
        assert await client.submit(large, 2_000_000) == b"x" * 2_000_000
        assert await asyncio.gather(*client.map(square, range(300))) == [n * n for n in range(300)]

    asyncio.run(main())


def test_await_raises_as_result_does(client: Client, server: Server) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="not 3"):
            await client.submit(refuse, 3)
        server.world.refuse = errors.NotFound("there is no endpoint 'moon'", remedy="look")
        with pytest.raises(errors.NotFound, match="moon"):
            await client.submit(square, 3, endpoint="moon")

    asyncio.run(main())


def test_the_loop_goes_on_while_a_task_is_awaited(client: Client, server: Server) -> None:
    server.world.hold.clear()
    task = client.submit(square, 3)

    async def main() -> None:
        waiting = asyncio.create_task(_value(task))
        for _ in range(5):  # turns of the loop, while nothing has ended
            await asyncio.sleep(0)
        assert not waiting.done()
        server.world.hold.set()
        assert await waiting == 9

    asyncio.run(main())


async def _value(task: Any) -> Any:
    return await task


def test_a_cancelled_wait_leaves_the_task(client: Client, server: Server) -> None:
    server.world.hold.clear()
    task = client.submit(square, 3)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await task

    asyncio.run(main())
    server.world.hold.set()
    assert task.result(20) == 9
    assert not any(task._batch.waiters.values())


def test_a_future_of_the_executor_can_be_wrapped(client: Client) -> None:
    async def main() -> None:
        with client.executor() as executor:
            assert await asyncio.wrap_future(executor.submit(square, 4)) == 16
            assert await asyncio.get_running_loop().run_in_executor(executor, square, 5) == 25

    asyncio.run(main())


def test_an_async_client_never_holds_the_loop(server: Server) -> None:
    threads: set[int] = set()

    async def main() -> None:
        async with AsyncClient(server.url, "token") as client:
            client.client.http.request = _noting(client.client.http.request, threads)  # type: ignore[method-assign]
            task = await client.submit(square, 3)
            assert await task == 9
            assert await client.gather(await client.map(square, range(5))) == [0, 1, 4, 9, 16]
            found = await client.gather([await client.submit(refuse, 1), task], return_exceptions=True)
            assert isinstance(found[0], ValueError)
            assert found[1] == 9
            ended = [t async for t in client.as_completed(await client.map(square, [1, 2, 3]))]
            assert sorted([await t for t in ended]) == [1, 4, 9]
            assert (await client.put(b"y" * 400_000)).size_bytes > 400_000
            await client.flush()
            assert (await client.in_thread(client.client.tasks.get, task.id)).id == task.id

    asyncio.run(main())
    assert threads
    assert threading.main_thread().ident not in threads


def _noting(call: Any, threads: set[int]) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return call(*args, **kwargs)

    return noted


def test_map_takes_several_iterables(client: Client) -> None:
    assert client.gather(client.map(pow, [2, 3, 4], [1, 2, 3, 4])) == [2, 9, 64]
    assert client.gather(client.map(lambda a, b, c: a + b + c, "ab", "cd", "ef")) == ["ace", "bdf"]
    with pytest.raises(TypeError, match="at least one iterable"):
        client.map(square)  # type: ignore[call-overload]
