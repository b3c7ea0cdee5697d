"""RoundRobin: items that wait, of each owner one in turn.

So nobody waits for all the items of somebody who has many.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """Queues of items by owner. Not safe for threads."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, item: T) -> None:
        """Append an item to its owner's queue."""
        self._waiting.setdefault(owner, deque()).append(item)

    def pop(self) -> T:
        """Remove the item of the owner whose turn it is. Raises KeyError if none waits."""
        owner, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[owner] = items  # at the end
        return item

    def clear(self) -> list[T]:
        """Remove all items, and return them."""
        items = [item for queue in self._waiting.values() for item in queue]
        self._waiting.clear()
        return items
