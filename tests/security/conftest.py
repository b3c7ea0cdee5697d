"""Fixtures: a server with the objects of one owner, and running systems of a module's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.running import System, system_in
from tests.security.world import World, world_in


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_in(tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a system without an endpoint."""
    with system_in(tmp_path_factory.mktemp("system"), "--no-endpoint") as system:
        yield system


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a system with one endpoint that is connected."""
    with system_in(tmp_path_factory.mktemp("served"), "--workers", "2") as system:
        system.await_connected()
        yield system
