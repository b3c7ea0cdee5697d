"""Logs: what a task printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator


class Logs:
    """Printed output of a task: iterate over its pieces, or print it.

    Each use reads it again from the server. A notebook shows it as text.
    """

    def __init__(self, read: Callable[[], Iterator[str]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[str]:
        return self._read()

    def __str__(self) -> str:
        return "".join(self._read())

    __repr__ = __str__
