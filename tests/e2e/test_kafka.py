"""A server on Kafka: common use, and a start after `kill -9`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import System, on_kafka, system_in
from tests.e2e.test_files import await_trigger, deploy, renamed, rules
from tests.kafka.broker import Broker


def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def system(kafka: tuple[str, str], tmp_path: Path) -> Iterator[System]:
    data = tmp_path / "data"
    with system_in(tmp_path, "--workers", "2", data=data, ONCUE_LOG=on_kafka(kafka[0], data)) as found:
        found.await_connected()
        yield found


def test_calls_maps_and_files(system: System) -> None:
    with system.client() as client:
        assert client.submit(double, 21).result(30) == 42
        assert client.gather(client.map(double, range(5_000))) == [2 * n for n in range(5_000)]
    folder = system.folder / "in"
    deploy(system, "files", rules("files", folder))
    await_trigger(system, "files")
    for n in range(20):
        renamed(folder, f"a{n}", 10 + n)
    found = system.await_tasks(20, rule="files-measure")
    assert all(t["state"] == "succeeded" for t in found)


def test_a_killed_server_resumes(system: System) -> None:
    with system.client() as client:
        assert client.submit(double, 1).result(30) == 2
    folder = system.folder / "in"
    deploy(system, "files", rules("files", folder))
    await_trigger(system, "files")
    renamed(folder, "before", 10)
    system.await_tasks(1, rule="files-measure")
    system.note()
    system.server.kill()
    renamed(folder, "while", 10)
    (system.data / "view.db").unlink()  # all of it comes from the log
    system.up("--workers", "2")
    renamed(folder, "after", 10)
    found = system.await_tasks(3, rule="files-measure")
    assert all(t["state"] == "succeeded" for t in found)
    with system.client() as client:
        assert client.submit(double, 4).result(30) == 8


def test_a_server_reports_a_lost_kafka_and_exits(own: Callable[..., Broker], tmp_path: Path) -> None:
    broker = own()
    data = tmp_path / "data"
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=on_kafka(broker.address, data)) as system:
        system.await_connected()
        broker.kill()

        def degraded() -> bool:
            health = system.http("GET", "/health/ready").json
            return bool(health["status"] == "degraded" and "has not answered" in health["checks"]["log"])

        system.await_true(degraded, "the server reports that Kafka is gone")
        system.down()
        assert not system.left()
        broker.start()
        system.up("--workers", "1")
        system.await_connected()
        with system.client() as client:
            assert client.submit(double, 4).result(30) == 8
        assert system.http("GET", "/health/ready").json["status"] == "ok"


def test_endpoints_that_share_a_few_topics(kafka: tuple[str, str], tmp_path: Path) -> None:
    """For clusters that forbid new topics or cannot hold thousands."""
    data = tmp_path / "data"
    url = on_kafka(kafka[0], data)
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=url, ONCUE_TASK_TOPICS="2") as system:
        try:
            _work_on_shared_topics(system)
        finally:
            for name in ("one", "two", "three"):
                system.oncue("endpoint", "stop", name)


def _work_on_shared_topics(system: System) -> None:
    system.await_connected()
    for name in ("one", "two", "three"):
        system.oncue("endpoint", "register", name, "--workers", "1")
    system.oncue("endpoint", "start", "two", "--detach")
    system.await_connected("two")
    with system.client() as client:
        waiting = [client.submit(double, n, endpoint=name) for n, name in enumerate(("one", "three"))]
        handles = [client.submit(double, n, endpoint=name) for n in range(200) for name in ("local", "two")]
        assert client.gather(handles, timeout=60) == [2 * n for n in range(200) for _ in range(2)]
        client.flush(30)
    system.note()
    system.server.kill()
    (system.data / "view.db").unlink()
    system.up("--workers", "1")
    for name in ("one", "three"):
        system.oncue("endpoint", "start", name, "--detach")
    with system.client() as client:
        assert [client.task(t.id).result(60) for t in waiting] == [0, 2]
    system.oncue("down")
    done = system.oncue("up", "--no-endpoint", "--detach", code=1, env={"ONCUE_TASK_TOPICS": "0"})
    assert "set task_topics = 2" in done.stderr + done.stdout
    system.up("--workers", "1")
