"""Fixtures: a running system for each test process and log.

`shared` serves the tests that do not stop it; their names keep them apart. Each test that uses a
system runs on the embedded log and on Kafka, except those marked `embedded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import StreamWorker, System, on_kafka, system_in


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "log_kind" in metafunc.fixturenames:
        embedded = metafunc.definition.get_closest_marker("embedded") is not None
        metafunc.parametrize("log_kind", ["sqlite"] if embedded else ["sqlite", "kafka"], scope="session")


def _log(kind: str, data: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    return {"ONCUE_LOG": on_kafka(request.getfixturevalue("kafka")[0], data)} if kind == "kafka" else {}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, log_kind: str, request: pytest.FixtureRequest) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("shared")
    data = folder / "data"
    with system_in(folder, "--workers", "2", data=data, **_log(log_kind, data, request)) as system:
        system.await_connected()
        yield system


@pytest.fixture
def stopped(tmp_path: Path, log_kind: str, request: pytest.FixtureRequest) -> Iterator[System]:
    """Return a system of the test's own that is not started yet."""
    data = tmp_path / "data"
    system = System(tmp_path, data, **_log(log_kind, data, request))
    try:
        yield system
    finally:
        system.end()


@pytest.fixture
def streamed(kafka: tuple[str, str], tmp_path: Path) -> Iterator[System]:
    """Yield a system on Kafka that leaves stateful rules to `oncue stream`."""
    data = tmp_path / "data"
    log = on_kafka(kafka[0], data)
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=log, ONCUE_RULES_MEMORY="stream") as found:
        found.await_connected()
        yield found


@pytest.fixture
def start_worker() -> Iterator[Callable[..., StreamWorker]]:
    """Starts `oncue stream` for a system, and awaits its first line; kills it afterwards."""
    workers: list[StreamWorker] = []

    def begin(system: System, first: str = "oncue stream is up", **env: str) -> StreamWorker:
        worker = StreamWorker(system, env)
        workers.append(worker)
        worker.expect(first)
        return worker

    yield begin
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()
