"""One running system a test process, for the tests that do not stop it: they keep out of each other's way by names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import System, system_in


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("shared"), "--workers", "2") as system:
        system.await_connected()
        yield system


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[System]:
    """One of its own, not started yet."""
    system = System(tmp_path)
    try:
        yield system
    finally:
        system.end()
