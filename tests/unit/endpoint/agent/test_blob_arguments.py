"""Blobs of held tasks: a task waits for all of its blobs, and they stay while a task uses them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from oncue.endpoint.agent.blob_arguments import LINGER_US, BlobArguments
from oncue.endpoint.agent.task_queue import AttemptGroup
from oncue.protocol.records import VERSION, Call, TaskRecord

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Cache:
    """The part of a BlobCache that is used here."""

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.fresh: set[str] = set()  # written just now

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.here

    def drop_blob(self, sha256: str, fresh_s: float = 0.0) -> bool:
        if fresh_s and sha256 in self.fresh:
            return False
        self.here.discard(sha256)
        return True


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def arguments(cache: Cache) -> BlobArguments:
    return BlobArguments(cast(Any, cache))


def task(n: int) -> TaskRecord:
    return TaskRecord(bytes([n]) * 16, b"")


def group(expires_us: int = 0) -> AttemptGroup:
    return AttemptGroup(b"", Call(VERSION, "f", "e", "ann", expires_us=expires_us), 1, 0, [], 0)


def test_a_task_waits_for_its_last_blob(arguments: BlobArguments, cache: Cache) -> None:
    cache.here = {C}
    assert arguments.require(group(), task(1), (A, B, C)) == [A, B]
    assert arguments.require(group(), task(2), (A,)) == [A]
    assert [t.id for _, t in arguments.on_fetched(A)] == [task(2).id]
    assert arguments.waiting() == {task(1).id}
    assert [t.id for _, t in arguments.on_fetched(B)] == [task(1).id]
    assert not arguments.waiting()


def test_a_failed_blob_ends_its_tasks_and_the_fetches_of_only_them(arguments: BlobArguments) -> None:
    arguments.require(group(), task(1), (A, B))
    arguments.require(group(), task(2), (A, C))
    arguments.require(group(), task(3), (C,))
    waited, idle = arguments.on_failed(A)
    assert sorted(t.id for _, t in waited) == [task(1).id, task(2).id]
    assert idle == [B]
    assert [t.id for _, t in arguments.on_fetched(C)] == [task(3).id]


def test_removed_tasks_leave_what_others_wait_for(arguments: BlobArguments) -> None:
    arguments.require(group(), task(1), (A, B))
    arguments.require(group(), task(2), (B,))
    waited, idle = arguments.remove({task(1).id, task(9).id})
    assert [t.id for _, t in waited] == [task(1).id]
    assert idle == [A]


def test_waiting_tasks_expire(arguments: BlobArguments) -> None:
    arguments.require(group(5), task(1), (A, B))
    arguments.require(group(50), task(2), (A,))
    arguments.require(group(), task(3), (A,))
    assert arguments.expired(10) == ({task(1).id}, 50)


def test_a_blob_goes_when_its_last_task_has_ended_for_a_while(arguments: BlobArguments, cache: Cache) -> None:
    cache.here = {A, B}
    arguments.require(group(), task(1), (A, B, A))
    arguments.require(group(), task(2), (B,))
    arguments.release([task(1).id], 0)
    arguments.drop(LINGER_US + 1, ())
    assert cache.here == {B}
    arguments.release([task(2).id], 0)
    arguments.drop(LINGER_US + 1, (B,))
    assert cache.here == {B}, "a result of this content is on its way"
    arguments.mark_unneeded(B, 0)
    arguments.drop(LINGER_US + 1, ())
    assert not cache.here


def test_an_unneeded_blob_that_a_worker_has_just_written_again_stays(arguments: BlobArguments, cache: Cache) -> None:
    cache.here = cache.fresh = {A}
    arguments.mark_unneeded(A, 0)
    arguments.drop(LINGER_US + 1, ())
    assert cache.here == {A}, "its result is on its way"

    cache.fresh = set()
    arguments.drop(LINGER_US * 2 + 2, ())
    assert not cache.here
