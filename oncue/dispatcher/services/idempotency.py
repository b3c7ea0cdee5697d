"""Requests that come again with their key: the same tasks, told from memory; other calls under an old key are a conflict."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from oncue.errors import Conflict
from oncue.log import Position
from oncue.protocol.records import Call, TaskRecord

Mark = tuple[str, bytes]  # (owner, key)


class Seen(msgspec.Struct, frozen=True, gc=False):
    accepted_us: int
    durable: asyncio.Future[list[Position]]
    content: int  # of what was asked for: see content_of


class IdempotencyCache:
    """The newest `most` requests of this process; what is older, or from before its start, only the view knows."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[Mark, Seen] = OrderedDict()

    @property
    def full(self) -> bool:
        """Some have been forgotten."""
        return len(self._seen) >= self._most

    def find(self, mark: Mark, call: Call, tasks: Sequence[TaskRecord]) -> Seen | None:
        """Raises Conflict when the key was used for other calls."""
        seen = self._seen.get(mark)
        if seen is not None and seen.content != content_of(call, tasks):
            raise reused()
        return seen

    def keep(self, mark: Mark, seen: Seen) -> None:
        self._seen[mark] = seen
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def forget(self, mark: Mark) -> None:
        self._seen.pop(mark, None)


def content_of(call: Call, tasks: Sequence[TaskRecord]) -> int:
    """The same in this process for the same function, endpoint and arguments."""
    return hash((call.function, call.endpoint, *[t.args for t in tasks]))


def reused() -> Conflict:
    return Conflict(
        "this key was used before, for other calls",
        remedy="a key names one request, which may be sent again as it was; mint a new key for other calls",
    )
