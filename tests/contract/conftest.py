from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from log_backends import BACKENDS, KAFKA, KAFKA_DATA, Backend

from oncue.log import Log
from tests.small_disk import mounted


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "kafka":
        address, data = request.getfixturevalue("kafka")
        monkeypatch.setenv(KAFKA, address)
        monkeypatch.setenv(KAFKA_DATA, data)
    return BACKENDS[request.param]


@pytest.fixture
def open_it(backend: Backend, tmp_path: Path) -> Callable[[], Awaitable[Log]]:
    """Open the test's log; after closing, open the same one again."""
    return lambda: backend.open(tmp_path / "log")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 24) as place:
        yield place
