"""What concurrent.futures documents for executors, held by ours over a real HTTP server."""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from client_server import Server, serving
from test_client import double, fail, packing, shipped  # noqa: F401  (a fixture, and what it needs)

from oncue import errors
from oncue.client import Client
from oncue.executor import OncueExecutor


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def executor(server: Server) -> Iterator[OncueExecutor]:
    with Client(server.url, "t", patience=10) as client, client.executor() as executor:
        yield executor
        server.world.hold.set()


def test_is_an_executor(executor: OncueExecutor) -> None:
    assert isinstance(executor, cf.Executor)
    future = executor.submit(pow, 2, 5)
    assert isinstance(future, cf.Future)
    assert future.result(10) == 32
    assert future.done()
    assert not future.running()
    assert future.exception() is None


def test_keywords_belong_to_the_function(executor: OncueExecutor) -> None:
    assert executor.submit(dict, fn=1, endpoint=2, self=3).result(10) == {"fn": 1, "endpoint": 2, "self": 3}


def test_the_functions_own_exception(executor: OncueExecutor) -> None:
    future = executor.submit(fail, "value")
    with pytest.raises(ValueError, match="value") as caught:
        future.result(10)
    assert isinstance(caught.value.__cause__, errors.TaskFailed)
    assert "user.py" in caught.value.__cause__.traceback
    assert isinstance(future.exception(), ValueError)


def test_wait_and_as_completed(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    futures = [executor.submit(double, i) for i in range(5)]
    done, pending = cf.wait(futures, timeout=0.05)
    assert not done
    assert len(pending) == 5
    with pytest.raises(cf.TimeoutError):
        futures[0].result(0.01)
    server.world.hold.set()
    assert {f.result() for f in cf.as_completed(futures, 10)} == {0, 2, 4, 6, 8}
    assert cf.wait(futures, return_when=cf.FIRST_EXCEPTION).not_done == set()


def test_map(executor: OncueExecutor) -> None:
    assert list(executor.map(pow, [2, 3, 4], [5, 2, 3])) == [32, 9, 64]
    assert list(executor.map(pow, range(100), [2] * 50, chunksize=7)) == [n * n for n in range(50)]
    assert list(executor.map(double, [])) == []
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(double, [1], chunksize=0)
    found = executor.map(fail, ["value", "key"])
    with pytest.raises(ValueError, match="value"):
        next(found)


def test_map_times_out_and_cancels_what_is_left(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    with pytest.raises(cf.TimeoutError):
        list(executor.map(double, range(3), timeout=0.05))
    executor.shutdown()  # waits until the server was told
    assert len(server.world.cancelled) == 3


def test_cancel(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    seen: list[Any] = []
    future.add_done_callback(seen.append)
    assert future.cancel()
    assert future.cancel()  # again is True as well
    assert future.cancelled()
    assert future.done()
    assert seen == [future]
    with pytest.raises(cf.CancelledError):
        future.result()
    while bytes.fromhex(future.task.id) not in server.world.cancelled:
        time.sleep(0.01)  # the server is told on another thread
    server.world.hold.set()
    done = executor.submit(double, 2)
    assert done.result(10) == 4
    assert not done.cancel()


def test_cancelled_by_somebody_else(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    future.task.cancel()
    server.world.hold.set()
    with pytest.raises(cf.CancelledError):
        future.result(10)
    assert cf.wait([future], 1).done == {future}


def test_shutdown(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(double, [2])
    assert not future.done()
    threading.Timer(0.05, server.world.hold.set).start()
    executor.shutdown(wait=True)
    assert future.done()
    assert future.result() == 2
    executor.shutdown()


def test_shutdown_cancels_futures(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    futures = [executor.submit(double, i) for i in range(4)]
    executor.shutdown(cancel_futures=True)
    assert all(f.cancelled() for f in futures)
    assert len(server.world.cancelled) == 4


def test_callbacks_run_off_the_outcome_thread(executor: OncueExecutor) -> None:
    names: list[str] = []
    ran = threading.Event()

    def note(_: cf.Future[int]) -> None:
        names.append(threading.current_thread().name)
        ran.set()

    future = executor.submit(time.sleep, 0.05)
    future.add_done_callback(note)
    assert ran.wait(10)
    assert names[0] != "oncue-outcomes"


def test_refused(executor: OncueExecutor, server: Server) -> None:
    server.world.refuse = errors.Forbidden("not yours", remedy="ask")
    with pytest.raises(errors.Forbidden):
        executor.submit(double, 1).result(10)
