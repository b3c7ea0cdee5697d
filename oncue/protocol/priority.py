"""Priorities of tasks: strict order, with a share for lower ones.

    live ──► normal ──► low

A task of a higher priority goes first. But of 16 tasks, at least one is of each lower priority that
waits: so a lower one is late, and never starved. Server and agent order their queues by this.
"""

from __future__ import annotations

from collections.abc import Collection

LIVE, NORMAL, LOW = 1, 0, -1
PRIORITIES = (LIVE, NORMAL, LOW)
PRIORITY_WORDS = ("live", "normal", "low")
_NUMBERS = dict(zip(PRIORITY_WORDS, PRIORITIES, strict=True))
_WORDS = dict(zip(PRIORITIES, PRIORITY_WORDS, strict=True))
SHARE = 16  # of so many tasks, one is of a lower priority that waits
_MOST_OWED = SHARE * SHARE  # tasks that are counted while a lower priority waits and has no room


def priority_number(word: str) -> int:
    """Return the number of a priority. Raises KeyError."""
    return _NUMBERS[word]


def priority_word(number: int) -> str:
    """Return the word of a priority; that of the nearest for one of a newer version."""
    return _WORDS[max(LOW, min(LIVE, number))]


def known_priority(number: int) -> int:
    """Return the priority, or the nearest for one of a newer version."""
    return max(LOW, min(LIVE, number))


class PriorityShare:
    """Decides which priority has its turn, by numbers of tasks."""

    def __init__(self) -> None:
        self._passed = {NORMAL: 0, LOW: 0}  # tasks of others that went while one of these waited

    def turns(self, waiting: Collection[int]) -> list[tuple[int, int]]:
        """Return (priority, most tasks; 0: no limit) in the order of their turns.

        A priority may be there twice: as far as its share goes, and without limit.
        """
        due = [(p, count // (SHARE - 1)) for p, count in self._passed.items() if count >= SHARE - 1 and p in waiting]
        return due + [(p, 0) for p in PRIORITIES if p in waiting]

    def dequeued(self, priority: int, tasks: int, waiting: Collection[int]) -> None:
        """Count tasks that had their turn. `waiting`: priorities with tasks before it."""
        for lower, passed in self._passed.items():
            if lower not in waiting:
                self._passed[lower] = 0
            elif lower != priority:
                self._passed[lower] = min(_MOST_OWED, passed + tasks)
        if priority in self._passed:
            self._passed[priority] = max(0, self._passed[priority] - tasks * (SHARE - 1))
