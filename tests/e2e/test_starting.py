"""A start that takes long: the API answers how far it is, and it can be stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import PATIENCE_S, Answer, System, request, signalled

EVENTS, BATCH = 60_000, 3_000
PERCENT = re.compile(r"not ok: bringing the view to the log's end: (\d+) % \(([\d,]+) of ([\d,]+) records\)")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A stopped server with many events."""
    system = System(tmp_path_factory.mktemp("starting"))
    try:
        system.up("--no-endpoint")
        for at in range(0, EVENTS, BATCH):
            batch = [
                {"specversion": "1.0", "id": f"e{n}", "source": "s", "type": "t", "data": {"n": n}}
                for n in range(at, at + BATCH)
            ]
            headers = {"Content-Type": "application/cloudevents-batch+json"}
            assert system.http("POST", "/v1/events", json.dumps(batch).encode(), headers).status < 300
        system.down()
        yield system
    finally:
        system.end()


def without_view(system: System) -> None:
    for file in system.data.glob("view.db*"):
        file.unlink()


def ask(system: System, path: str, method: str = "GET", body: bytes = b"") -> Answer:
    """Send a request to the port of the last time; local.json is not written yet."""
    port = (system.data / "http.port").read_text()
    return request(f"http://127.0.0.1:{port}", method, path, body)


def while_starting(system: System) -> Iterator[dict[str, Any]]:
    """Yield the answers of /health/ready until the server is ready."""

    def health() -> Answer | None:
        return ask(system, "/health/ready")

    while (answer := system.await_true(health, "it answers")) is not None and answer.status == 503:
        yield dict(answer.json)
    assert answer is not None
    assert answer.status == 200, answer


def start(system: System) -> subprocess.Popen[str]:
    return system.start("up", "--port", "0", "--no-endpoint")


def test_while_the_view_is_built_again_the_api_answers_how_far_it_is(stored: System) -> None:
    without_view(stored)
    process = start(stored)
    try:
        found: list[tuple[int, int]] = []
        others: list[Answer] = []
        for health in while_starting(stored):
            assert health["status"] == "starting"
            if (match := PERCENT.match(health["checks"]["start"])) is None:
                continue
            found.append((int(match[1]), int(match[3].replace(",", ""))))
            if len(found) == 1:
                others = [
                    ask(stored, "/health/live"),
                    ask(stored, "/v1/tasks"),
                    ask(stored, "/v1/events", "POST", b"{}"),
                    ask(stored, "/hooks/x", "POST", b"x" * 1_000_000),
                ]
        assert found
        assert found == sorted(found)
        assert all(percent <= 100 and total >= EVENTS for percent, total in found)
        assert [answer.status for answer in others] == [200, 503, 503, 503]
        for answer in others[1:]:
            assert answer.json["code"] == "not-ready"
            assert answer.json["detail"].startswith("the server is starting: ")
            assert answer.headers["retry-after"] == "5"
        assert stored.http("GET", "/v1/events?limit=1").json["items"][0]["event"]["id"] == f"e{EVENTS - 1}"
    finally:
        signalled(process, signal.SIGTERM)


def test_a_start_can_be_stopped_and_goes_on_at_the_next(stored: System) -> None:
    without_view(stored)
    process = start(stored)
    assert next(while_starting(stored))["status"] == "starting"
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, printed
    assert "stopped during the start" in printed
    assert "Traceback" not in printed

    stored.up("--no-endpoint")
    assert stored.http("GET", "/v1/events?limit=1").json["items"][0]["event"]["id"] == f"e{EVENTS - 1}"
    stored.down()


def test_a_start_that_is_killed_goes_on_at_the_next(stored: System) -> None:
    without_view(stored)
    process = start(stored)
    assert next(while_starting(stored))["status"] == "starting"
    process.kill()
    process.communicate()

    stored.up("--no-endpoint")
    assert stored.http("GET", "/v1/events?limit=1").json["items"][0]["event"]["id"] == f"e{EVENTS - 1}"
    stored.down()


def test_a_port_in_use_is_told_before_the_start(stored: System, tmp_path: Path) -> None:
    stored.up("--no-endpoint")
    port = stored.local["url"].rpartition(":")[2]
    other = System(tmp_path)
    done = other.oncue("up", "--port", port, "--no-endpoint", code=None)
    stored.down()

    assert done.returncode != 0
    assert "is in use by another program" in done.stderr
    assert not (other.data / "log" / "log.db").exists()
