"""Frees many objects one by one.

Python frees a large structure in one go, during which no other thread runs. 10,000 rules take
0.1 s, 40,000 regular expressions half a second.
"""

from __future__ import annotations

from typing import Any


def dispose(items: list[Any]) -> None:
    """Drop the items of a list that nobody else uses. Call it in a thread."""
    while items:
        items.pop()
