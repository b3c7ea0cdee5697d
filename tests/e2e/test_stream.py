"""`oncue stream` beside a server on Kafka, and each without the other."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import System, on_kafka, signalled, system_in
from tests.ports import free_port

FUNCTION = "def stack(path, size):\n    return [size, sorted(path)]\n"
RULES = """
rules:
  - name: stack
    on: {type: layer.written}
    dedupe: {key: "${data.path}", ttl: 10m}
    batch: {key: "${data.scan}", count: 3, wait: 1h}
    run: {function: tomo.py:stack, args: {path: "${each.data.path}", size: "${count}"}}
"""


@pytest.fixture
def system(streamed: System) -> System:
    streamed.write("tomo.py", FUNCTION)
    return streamed


def emit(system: System, scan: int, *numbers: int) -> None:
    for n in numbers:
        body = {"source": "/b", "type": "layer.written"}
        answer = system.http("POST", "/v1/events", body | {"data": {"scan": scan, "path": f"/{scan}/{n}"}})
        assert answer.status == 202, answer


def rule(system: System) -> dict[str, Any]:
    return dict(system.json("rules", "show", "stack"))


@pytest.mark.timeout(240)
def test_a_server_leaves_stateful_rules_to_a_stream_worker(system: System, start_worker: Any) -> None:
    system.write("layers.yaml", RULES)
    deployed = system.oncue("deploy", "--yes", "layers.yaml")
    assert "no stream worker reports; start one: oncue stream --log 'kafka://" in deployed.stderr
    assert "no stream worker reports" in rule(system)["why"]
    doctor = {f["check"]: f for f in system.json("doctor", code=1)}
    assert "oncue stream" in doctor["rules with memory"]["found"]
    emit(system, 7, 1, 2, 2)  # they wait in the log
    worker = start_worker(system)
    system.await_true(lambda: rule(system)["waiting"] == 2 and rule(system)["suppressed"] == 1, "the window is shown")
    assert rule(system)["why"] == ""
    event = {"specversion": "1.0", "id": "x", "source": "/b", "type": "layer.written"}
    system.write("double.json", json.dumps(event | {"data": {"scan": 7, "path": "/7/2"}}))
    explained = system.json("rules", "explain", "stack", "double.json")
    assert not explained["fires"]
    assert "the key /7/2 fired" in explained["why"]
    system.write("third.json", json.dumps(event | {"data": {"scan": 7, "path": "/7/3"}}))
    assert "2 of 3 events in the open window" in system.json("rules", "explain", "stack", "third.json")["why"]
    emit(system, 7, 3)
    (task,) = system.await_tasks(1, rule="stack")
    assert task["state"] == "succeeded"
    # Killed with an open window, which its successor closes.
    emit(system, 8, 1, 2)
    system.await_true(lambda: rule(system)["waiting"] == 2, "the next window is open")
    worker.process.kill()
    successor = start_worker(system)
    emit(system, 8, 3)
    assert len(system.await_tasks(2, rule="stack")) == 2
    out, err = signalled(successor.process, signal.SIGINT)
    assert successor.process.returncode == 0, (out, err)
    assert "Traceback" not in err
    system.await_true(lambda: "no stream worker" in rule(system)["why"], "a worker that has stopped is not counted on")


@pytest.mark.timeout(240)
def test_open_windows_move_from_a_server_to_a_worker_and_back(
    kafka: tuple[str, str], tmp_path: Path, start_worker: Any
) -> None:
    data = tmp_path / "data"
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=on_kafka(kafka[0], data)) as system:
        system.await_connected()
        system.write("tomo.py", FUNCTION)
        system.write("layers.yaml", RULES)
        system.oncue("deploy", "--yes", "layers.yaml")
        assert rule(system)["why"] == ""
        emit(system, 7, 1, 2)
        system.await_true(lambda: rule(system)["waiting"] == 2, "the server holds the window")
        # A worker beside such a server waits.
        worker = start_worker(system, "waiting until a server hands over the partitions 0, 1")
        system.down()
        system.env["ONCUE_RULES_MEMORY"] = "stream"
        system.up("--workers", "1")
        worker.expect("oncue stream is up")
        system.await_true(lambda: rule(system)["waiting"] == 2, "the worker holds the window")
        emit(system, 7, 2, 3)  # one is a double still
        assert results(system, 1) == [[3, ["/7/1", "/7/2", "/7/3"]]]
        emit(system, 8, 1, 2)
        system.await_true(lambda: rule(system)["waiting"] == 2, "the next window is open")
        system.down()
        system.env["ONCUE_RULES_MEMORY"] = "server"
        system.up("--workers", "1")
        system.await_true(lambda: rule(system)["waiting"] == 2, "the server holds the window again")
        assert "there are stream workers" in rule(system)["why"]
        emit(system, 8, 2, 3)
        assert results(system, 2) == [[3, ["/7/1", "/7/2", "/7/3"]], [3, ["/8/1", "/8/2", "/8/3"]]]
        _, err = worker.process.communicate(timeout=60)  # its next match was refused
        assert worker.process.returncode == 1, err
        assert "another process has claimed partitions of this worker" in err
        assert len(system.tasks(rule="stack")) == 2


def results(system: System, count: int) -> list[Any]:
    with system.client() as client:
        return sorted(client.task(task["id"]).result(30) for task in system.await_tasks(count, rule="stack"))


@pytest.mark.embedded
def test_on_the_embedded_log_it_reports_that_it_is_not_needed(stopped: System) -> None:
    done = stopped.oncue("stream", code=2)
    assert "the server runs stateful rules itself" in done.stderr
    done = stopped.oncue("up", "--port", "0", env={"ONCUE_RULES_MEMORY": "stream"}, code=2)
    assert 'rules_memory is "stream", and the log is not on Kafka' in done.stderr
    done = stopped.oncue("up", "--port", "0", env={"ONCUE_RULES_MEMORY": "servers"}, code=2)
    assert "rules_memory is server or stream" in done.stderr


def test_it_reports_a_broker_that_does_not_answer(stopped: System) -> None:
    done = stopped.oncue("stream", "--log", f"kafka://127.0.0.1:{free_port()}", code=1)
    assert "cannot be reached" in done.stderr or "could not be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_it_starts_ends_it(kafka: tuple[str, str], stopped: System) -> None:
    process = stopped.start("stream", "--log", on_kafka(kafka[0], stopped.data))
    threading.Event().wait(1.0)  # anywhere in its start
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode in (0, 130), (out, err)
