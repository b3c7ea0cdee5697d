"""IdempotencyCache: repeated requests, reused keys, and a bounded size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from oncue.dispatcher.services.idempotency import AcceptedRequest, IdempotencyCache, content_of
from oncue.errors import Conflict
from oncue.protocol.records import VERSION, Call, TaskRecord

CALL = Call(VERSION, "f" * 64, "ep", "ada")
TASKS = [TaskRecord(b"1" * 16, b"args")]


def request() -> AcceptedRequest:
    return AcceptedRequest(5, asyncio.get_running_loop().create_future(), content_of(CALL, TASKS))


def with_loop(work: Callable[[], Any]) -> None:
    """Run `work` where futures can be made."""

    async def main() -> None:
        work()

    asyncio.run(main())


def test_a_repeated_request_is_found_by_owner_and_key() -> None:
    def work() -> None:
        cache, first = IdempotencyCache(10), request()
        cache.add(("ada", b"k"), first)
        assert cache.find(("ada", b"k"), CALL, TASKS) is first
        assert cache.find(("bob", b"k"), CALL, TASKS) is None
        assert cache.find(("ada", b"other"), CALL, TASKS) is None

    with_loop(work)


@pytest.mark.parametrize(
    ("call", "tasks"),
    [
        (Call(VERSION, "0" * 64, "ep", "ada"), TASKS),
        (Call(VERSION, "f" * 64, "other", "ada"), TASKS),
        (CALL, [TaskRecord(b"1" * 16, b"others")]),
        (CALL, TASKS * 2),
    ],
)
def test_a_key_that_comes_with_other_calls_is_a_conflict(call: Call, tasks: list[TaskRecord]) -> None:
    def work() -> None:
        cache = IdempotencyCache(10)
        cache.add(("ada", b"k"), request())
        with pytest.raises(Conflict, match="used before"):
            cache.find(("ada", b"k"), call, tasks)

    with_loop(work)


def test_ids_and_options_of_a_call_do_not_matter() -> None:
    def work() -> None:
        cache = IdempotencyCache(10)
        cache.add(("ada", b"k"), request())
        again = Call(VERSION, "f" * 64, "ep", "ada", timeout_ms=9, stream="s")
        assert cache.find(("ada", b"k"), again, [TaskRecord(b"2" * 16, b"args")]) is not None

    with_loop(work)


def test_a_full_cache_drops_its_oldest_request() -> None:
    def work() -> None:
        cache = IdempotencyCache(2)
        assert not cache.full
        for key in (b"1", b"2", b"3"):
            cache.add(("ada", key), request())
        assert cache.full
        assert [cache.find(("ada", key), CALL, TASKS) is None for key in (b"1", b"2", b"3")] == [True, False, False]

    with_loop(work)


def test_a_failed_request_can_be_repeated_with_other_calls() -> None:
    def work() -> None:
        cache = IdempotencyCache(2)
        cache.add(("ada", b"k"), request())
        cache.remove(("ada", b"k"))
        cache.remove(("ada", b"k"))
        assert cache.find(("ada", b"k"), CALL, TASKS * 2) is None

    with_loop(work)
