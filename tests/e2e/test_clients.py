"""Python programs as their habits have it: executors of their own, Dask, event loops."""

from __future__ import annotations

import asyncio
from concurrent.futures import as_completed
from typing import Any

import pytest

from oncue import AsyncClient, OncueExecutor
from tests.e2e.running import PATIENCE_S, System

pytestmark = pytest.mark.embedded


def square(x: int) -> int:
    return x * x


async def half(x: float) -> float:
    return x / 2


def test_an_executor_is_made_as_others_are(shared: System) -> None:
    with OncueExecutor(data=shared.data, endpoint="local") as executor:
        futures = [executor.submit(square, n) for n in range(5)]
        assert sorted(f.result() for f in as_completed(futures, PATIENCE_S)) == [0, 1, 4, 9, 16]
        assert executor._max_workers == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    with shared.client() as client, pytest.raises(TypeError, match="url is an argument"):
        OncueExecutor(client, url="http://127.0.0.1:9")


def test_dask_computes_on_it(shared: System) -> None:
    dask = pytest.importorskip("dask", reason="needs Dask: python -m pip install dask")
    lazy: Any = dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(5)])
    with OncueExecutor(data=shared.data) as executor:
        assert lazy.compute(scheduler=executor) == 30


def test_an_event_loop_awaits_tasks(shared: System) -> None:
    async def main() -> None:
        async with AsyncClient(data=shared.data) as client:
            assert await (await client.submit(half, 3)) == 1.5
            ref = await client.put([1.0] * 100_000)
            assert await (await client.submit(len, ref)) == 100_000

    asyncio.run(main())
