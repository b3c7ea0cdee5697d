"""Handles: results, failures, timeouts, cancellation, callbacks."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from oncue import errors
from oncue.client import Client, as_completed
from tests.unit.client.client_server import Server, double, fail, serving


def test_submit_and_result(client: Client) -> None:
    task = client.submit(double, 21)
    assert task.result(10) == 42
    assert task.result() == 42
    assert task.done()
    assert task.status() == "succeeded"
    assert task.exception() is None
    assert len(task.id) == 32


def test_timeout(client: Client, server: Server) -> None:
    server.world.hold.clear()
    task = client.submit(double, 3)
    task._wait_accepted()
    with pytest.raises(TimeoutError, match=rf"^task {task.id} has not ended in 0\.05 s; it goes on$"):
        task.result(0.05)
    with pytest.raises(TimeoutError, match=rf"^task {task.id} has not ended in 0\.05 s; it goes on$"):
        client.gather([task], 0.05)
    with pytest.raises(TimeoutError, match=rf"^task {task.id} has not ended in 0\.05 s; it goes on$"):
        client.task(task.id).result(0.05)
    assert not task.wait(0.01)
    assert not task.done()
    with pytest.raises(TimeoutError, match=r"1 tasks have not ended in 0\.05 s; they go on$"):
        list(as_completed([task], 0.05))
    assert task.status() == "waiting"
    server.world.hold.set()
    assert task.result(10) == 6


def test_timeout_of_an_unaccepted_task() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=10)
        client.submit(double, 1).result(10)
    late = client.submit(double, 2)
    with pytest.raises(TimeoutError, match=rf"^the server has not accepted task {late.id} in 0\.05 s"):
        late.result(0.05)
    with pytest.raises(TimeoutError, match="1 of them the server has not accepted yet"):
        list(as_completed([late], 0.05))
    client.close(flush=False)


def test_failures(client: Client) -> None:
    task = client.submit(fail, "value")
    with pytest.raises(ValueError, match=r"^value$") as caught:
        task.result(10)
    cause = caught.value.__cause__
    assert isinstance(cause, errors.TaskFailed)
    assert 'File "user.py"' in str(cause)
    assert cause.task_id == task.id
    assert cause.type_name == "ValueError"
    assert type(task.exception()) is ValueError
    with pytest.raises(ValueError, match=r"^value$"):
        client.gather([client.submit(double, 1), task])
    found = client.gather([client.submit(double, 1), task], return_exceptions=True)
    assert found[0] == 2
    assert type(found[1]) is ValueError


def test_cancel(client: Client, server: Server) -> None:
    server.world.hold.clear()
    task = client.submit(double, 3)
    task.cancel()
    server.world.hold.set()
    with pytest.raises(errors.TaskCancelled):
        task.result(10)
    assert task.status() == "cancelled"


def test_failing_callback_does_not_stop_the_thread(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    task = client.submit(double, 1)
    done = threading.Event()

    def bad(_: Any) -> None:
        done.set()
        raise ValueError("mine")

    task.add_done_callback(bad)
    assert done.wait(10)
    start = time.monotonic()
    assert client.submit(double, 2).result(10) == 4
    assert time.monotonic() - start < 5
