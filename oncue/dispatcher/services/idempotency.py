"""Remembers requests by their idempotency keys.

A repeated request gets the tasks of the first one. A key that comes with other calls is a conflict.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from oncue.errors import Conflict
from oncue.log import Position
from oncue.protocol.records import Call, TaskRecord

RequestKey = tuple[str, bytes]  # (owner, key)


class AcceptedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request whose tasks were handed to the log."""

    accepted_us: int
    durable: asyncio.Future[list[Position]]
    content: int  # hash of its calls: see content_of


class IdempotencyCache:
    """The latest requests of this process, at most `capacity`.

    Only the view knows older ones, and those of an earlier process.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._requests: OrderedDict[RequestKey, AcceptedRequest] = OrderedDict()

    @property
    def full(self) -> bool:
        """True if requests may have been dropped."""
        return len(self._requests) >= self._capacity

    def find(self, key: RequestKey, call: Call, tasks: Sequence[TaskRecord]) -> AcceptedRequest | None:
        """Return the request with this key. Raises Conflict if it had other calls."""
        found = self._requests.get(key)
        if found is not None and found.content != content_of(call, tasks):
            raise key_reused()
        return found

    def add(self, key: RequestKey, request: AcceptedRequest) -> None:
        """Remember a request. Drops the oldest one if the cache is full."""
        self._requests[key] = request
        if len(self._requests) > self._capacity:
            self._requests.popitem(last=False)

    def remove(self, key: RequestKey) -> None:
        """Forget a request whose tasks could not be appended."""
        self._requests.pop(key, None)


def content_of(call: Call, tasks: Sequence[TaskRecord]) -> int:
    """Return a hash of function, endpoint and arguments, for this process only."""
    return hash((call.function, call.endpoint, *[t.args for t in tasks]))


def key_reused() -> Conflict:
    """Return the error for a key that comes with other calls."""
    return Conflict(
        "this key was used before, for other calls",
        remedy="a key names one request, which may be sent again as it was; mint a new key for other calls",
    )
