"""Fresh tasks reach their lane once: whichever of this process's word and the log's reader comes first, and however often they
are told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from oncue import ids
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


class Site:
    """A log, a view and a bridge, as far as Incoming asks them."""

    fifo = False
    shared = True

    def __init__(self) -> None:
        self.first: dict[bytes, int] = {}  # in the view: task -> accepted_us of its first record
        self.handed: list[bytes] = []
        self.offset = itertools.count()
        self.beside: list[Any] = []
        self.router = TaskRouter(
            cast(Log, self),
            cast(View, self),
            cast(BridgeSocket, self),
            ids.now_us() - 1_000_000,
            self.beside.append,
            self.made,
        )

    def made(self, rule: str, count: int) -> None: ...

    def is_own(self, record: Record) -> bool:
        return record.headers == OURS

    async def accepted(self, tasks: Sequence[bytes]) -> dict[bytes, int]:
        return {t: self.first[t] for t in tasks if t in self.first}

    def with_channel(self, endpoint: str, call: Callable[..., None]) -> None:
        self.handed += [t.id for t in call.keywords["frame"].tasks]  # type: ignore[attr-defined]

    def read(self, record: Record, frame: TaskFrame) -> None:
        """By the view, and then here; what is asked beside comes to its end."""
        for task in frame.tasks:
            self.first.setdefault(task.id, frame.accepted_us)
        self.router.on_read(RecordBatch(TOPIC, 0, [next(self.offset)], [record]))
        while self.beside:
            asyncio.run(self.beside.pop(0))

    def step(self, step: str, record: Record, frame: TaskFrame) -> None:
        if step == "told":
            self.router.on_appended(TOPIC, [record])
        else:
            self.read(record, frame)

    def left_over(self) -> int:
        return sum(len(c) for c in (self.router._awaiting_reader, self.router._forwarded, self.router._read_first))


def frame_of(task_id: bytes, at_us: int) -> tuple[TaskFrame, Record, Record]:
    """As this process has it, and as another has."""
    frame = TaskFrame(
        VERSION, Call(VERSION, "f" * 64, "ep_1", "somebody"), at_us, [TaskRecord(task_id, b"m\x92\x90\x80")]
    )
    return frame, Record(encode(frame), headers=OURS), Record(encode(frame), headers=((b"by", b"another"),))


@pytest.mark.parametrize("task_id", [NEW, HASHED], ids=["new", "hashed"])
@pytest.mark.parametrize("order", ["told, read", "read, told"])
def test_a_record_of_this_process(task_id: bytes, order: str) -> None:
    site, (frame, ours, _) = Site(), frame_of(task_id, 5)
    for step in order.split(", "):
        site.step(step, ours, frame)
    assert site.handed == [task_id]
    assert site.left_over() == 0


@pytest.mark.parametrize("task_id", [NEW, HASHED], ids=["new", "hashed"])
@pytest.mark.parametrize("order", sorted(set(itertools.permutations(("told", "read", "another")))))
def test_a_request_that_two_servers_took(task_id: bytes, order: tuple[str, ...]) -> None:
    """In any order of the two records in the log, and of the word that this process's one is durable."""
    site = Site()
    mine, ours, _ = frame_of(task_id, 5)
    other, _, theirs = frame_of(task_id, 6)
    for step in order:
        if step == "another":
            site.read(theirs, other)
        else:
            site.step(step, ours, mine)
    assert site.handed == [task_id]
    assert site.left_over() == 0


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(("told", "told", "read", "read")))))
def test_the_same_record_twice(order: tuple[str, ...]) -> None:
    site, (frame, ours, _) = Site(), frame_of(HASHED, 5)
    for step in order:
        site.step(step, ours, frame)
    assert site.handed == [HASHED]
    assert site.left_over() == 0


def test_a_record_that_the_process_is_never_told_of() -> None:
    """Its append was said to have failed, and is in the log all the same."""
    site, (frame, ours, _) = Site(), frame_of(HASHED, 5)
    site.read(ours, frame)
    assert site.handed == [HASHED]
