"""Looks for a bug that was put in on purpose, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import pytest


class Runs(Protocol):
    """A world: `run` raises if something does not hold."""

    def run(self) -> object: ...


W = TypeVar("W", bound=Runs)


def first_that_fails(make: Callable[[int], W], seeds: Iterable[int]) -> W:
    """Return the world of the first seed that fails; fail if there is none."""
    for seed in seeds:
        world = make(seed)
        try:
            world.run()
        except Exception:
            return world
    pytest.fail(f"{seeds} did not find it")
