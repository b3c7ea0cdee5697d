"""New tasks are forwarded to their channel once, in any order of append watcher and log reader, and if they are repeated."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from oncue import ids
from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.bridge.task_router import TaskRouter
from oncue.log import Log, Record, RecordBatch
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, Call, TaskFrame, TaskRecord
from oncue.view import View

TOPIC = "oncue.tasks.ep_1"
OURS = ((b"by", b"me"),)
NEW, HASHED = (
    ids.new_uuid7(),
    bytes.fromhex("ecde836ec06679e8852a1eb4f6530000"),
)  # of a time since the start; of no time


class FakeServer:
    """Stands for the log, the view and the bridge of a TaskRouter."""

    fifo = False
    shared = True

    def __init__(self) -> None:
        self.first: dict[bytes, int] = {}  # in the view: task -> accepted_us of its first record
        self.forwarded: list[bytes] = []
        self.offset = itertools.count()
        self.coroutines: list[Any] = []
        self.router = TaskRouter(
            cast(Log, self),
            cast(View, self),
            cast(BridgeSocket, self),
            now_us() - 1_000_000,
            self.coroutines.append,
            self.made,
        )

    def made(self, rule: str, count: int) -> None: ...

    def is_own(self, record: Record) -> bool:
        return record.headers == OURS

    async def accepted(self, tasks: Sequence[bytes]) -> dict[bytes, int]:
        return {t: self.first[t] for t in tasks if t in self.first}

    def with_channel(self, endpoint: str, call: Callable[..., None]) -> None:
        self.forwarded += [t.id for t in call.keywords["frame"].tasks]  # type: ignore[attr-defined]

    def read(self, record: Record, frame: TaskFrame) -> None:
        """Apply a record to the view, let the router read it, and run the coroutines that it starts."""
        for task in frame.tasks:
            self.first.setdefault(task.id, frame.accepted_us)
        self.router.on_read(RecordBatch(TOPIC, 0, [next(self.offset)], [record]))
        while self.coroutines:
            asyncio.run(self.coroutines.pop(0))

    def step(self, step: str, record: Record, frame: TaskFrame) -> None:
        if step == "appended":
            self.router.on_appended(TOPIC, [record])
        else:
            self.read(record, frame)

    def left_over(self) -> int:
        return sum(len(c) for c in (self.router._awaiting_reader, self.router._forwarded, self.router._read_first))


def frame_of(task_id: bytes, at_us: int) -> tuple[TaskFrame, Record, Record]:
    """Return a frame, its record from this process, and its record from another process."""
    frame = TaskFrame(
        VERSION, Call(VERSION, "f" * 64, "ep_1", "somebody"), at_us, [TaskRecord(task_id, b"m\x92\x90\x80")]
    )
    return frame, Record(encode(frame), headers=OURS), Record(encode(frame), headers=((b"by", b"another"),))


@pytest.mark.parametrize("task_id", [NEW, HASHED], ids=["new", "hashed"])
@pytest.mark.parametrize("order", ["appended, read", "read, appended"])
def test_a_record_of_this_process(task_id: bytes, order: str) -> None:
    server, (frame, ours, _) = FakeServer(), frame_of(task_id, 5)
    for step in order.split(", "):
        server.step(step, ours, frame)
    assert server.forwarded == [task_id]
    assert server.left_over() == 0


@pytest.mark.parametrize("task_id", [NEW, HASHED], ids=["new", "hashed"])
@pytest.mark.parametrize("order", sorted(set(itertools.permutations(("appended", "read", "another")))))
def test_a_request_that_two_servers_accepted(task_id: bytes, order: tuple[str, ...]) -> None:
    """In any order of the two records in the log, and of the report that this process's append is durable."""
    server = FakeServer()
    mine, ours, _ = frame_of(task_id, 5)
    other, _, theirs = frame_of(task_id, 6)
    for step in order:
        if step == "another":
            server.read(theirs, other)
        else:
            server.step(step, ours, mine)
    assert server.forwarded == [task_id]
    assert server.left_over() == 0


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(("appended", "appended", "read", "read")))))
def test_the_same_record_twice(order: tuple[str, ...]) -> None:
    server, (frame, ours, _) = FakeServer(), frame_of(HASHED, 5)
    for step in order:
        server.step(step, ours, frame)
    assert server.forwarded == [HASHED]
    assert server.left_over() == 0


def test_a_record_whose_append_is_never_reported() -> None:
    """The append was reported as failed, but the record is in the log."""
    server, (frame, ours, _) = FakeServer(), frame_of(HASHED, 5)
    server.read(ours, frame)
    assert server.forwarded == [HASHED]
