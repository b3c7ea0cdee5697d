"""SharedAnswer: cheap answers are fresh, dear ones are shared for a while."""

from __future__ import annotations

import asyncio

from oncue.dispatcher.services.shared_answer import KEPT_S, SharedAnswer


def test_an_answer_is_kept_in_proportion_to_what_it_took() -> None:
    now, took, made = 0.0, 0.0, 0

    async def make() -> int:
        nonlocal now, made
        now, made = now + took, made + 1
        return made

    async def work() -> None:
        nonlocal now, took
        answer = SharedAnswer(make, lambda: now)
        assert [await answer.get(), await answer.get()] == [1, 2]  # it takes no time
        took = 0.01
        assert await answer.get() == 3
        now += 0.49
        assert await answer.get() == 3
        now += 0.02
        took = 10.0
        assert [await answer.get(), await answer.get()] == [4, 4]
        now += KEPT_S
        assert await answer.get() == 5

    asyncio.run(work())


def test_who_ask_at_once_get_one_answer() -> None:
    async def work() -> None:
        made = 0

        async def make() -> int:
            nonlocal made
            made += 1
            await asyncio.sleep(0.01)
            return made

        answer = SharedAnswer(make)
        assert await asyncio.gather(*(answer.get() for _ in range(10))) == [1] * 10

    asyncio.run(work())
