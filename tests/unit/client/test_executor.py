"""OncueExecutor against the documentation of concurrent.futures, over a real HTTP server."""

from __future__ import annotations

import concurrent.futures as cf
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from oncue import errors
from oncue.client import Client
from oncue.client.executor import OncueExecutor
from tests.unit.client.client_server import Server, double, fail, serving


@pytest.fixture
def executor(client: Client, server: Server) -> Iterator[OncueExecutor]:
    with client.executor() as executor:
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


def test_map_cancels_the_rest_on_timeout(executor: OncueExecutor, server: Server) -> None:
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
    assert bytes.fromhex(future.task.id) in server.world.cancelled
    server.world.hold.set()
    done = executor.submit(double, 2)
    assert done.result(10) == 4
    assert not done.cancel()


def test_cancel_does_not_end_a_running_call(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    running, waiting = executor.submit(double, 1), executor.submit(double, 2)
    server.world.sent = {0}
    assert not running.cancel()
    assert running.running()
    assert not running.done()
    assert not server.world.cancelled
    assert waiting.cancel()
    server.world.hold.set()
    assert running.result(10) == 2
    assert not running.running()


def test_running_requests_the_state(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    future.task._wait_accepted()
    assert not future.running()
    server.world.sent = {0}
    assert future.running()
    server.world.sent = set()
    assert future.running()  # it never goes back
    assert not future.cancel()
    server.world.hold.set()
    assert future.result(10) == 2


def test_cancel_fails_without_a_server() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=0.3)
        server.world.hold.clear()
        future = client.executor().submit(double, 1)
        future.task._wait_accepted()
        server.world.mute = True
    assert not future.cancel()
    assert not future.running()
    with pytest.raises(errors.Unreachable):  # no wait without end for an outcome that nobody brings
        future.result(20)
    client.close(flush=False)


def test_futures_fail_when_the_client_is_closed(server: Server) -> None:
    server.world.hold.clear()
    with Client(server.url, "t", patience=10) as client:
        future = client.executor().submit(double, 1)
    with pytest.raises(errors.Invalid, match="closed"):
        future.result(20)


def test_cancelled_by_somebody_else(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    future.task.cancel()
    server.world.hold.set()
    with pytest.raises(cf.CancelledError):
        future.result(10)
    assert cf.wait([future], 1).done == {future}


def test_cancelled_by_somebody_else_while_it_runs(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    future.task._wait_accepted()
    server.world.sent = {0}
    assert future.running()
    future.task.cancel()
    server.world.hold.set()
    with pytest.raises(errors.TaskCancelled):
        future.result(10)
    assert not future.cancelled()  # a future that runs cannot be


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


def test_shutdown_waits_for_a_running_call(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    futures = [executor.submit(double, i) for i in range(4)]
    futures[-1].task._wait_accepted()
    server.world.sent = {1, 2}
    threading.Timer(0.05, server.world.hold.set).start()
    executor.shutdown(wait=True, cancel_futures=True)
    assert [f.cancelled() for f in futures] == [True, False, False, True]
    assert [f.result(0) for f in futures[1:3]] == [2, 4]
    assert cf.wait(futures, 0).done == set(futures)


def test_shutdown_without_waiting(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(double, 1)
    future.task._wait_accepted()
    server.world.sent = {0}
    executor.shutdown(wait=False, cancel_futures=True)
    assert not future.done()
    server.world.hold.set()
    assert future.result(10) == 2  # it is brought all the same


def test_the_context_manager_waits(server: Server) -> None:
    server.world.hold.clear()
    with Client(server.url, "t", patience=10) as client:
        with client.executor() as executor:
            future = executor.submit(double, 1)
            threading.Timer(0.05, server.world.hold.set).start()
        assert future.done()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, 1)


def test_shutdown_in_a_callback_raises(executor: OncueExecutor) -> None:
    found: SimpleQueue[BaseException] = SimpleQueue()

    def shut(_: Any) -> None:
        try:
            executor.shutdown()
        except RuntimeError as e:
            found.put(e)

    executor.submit(time.sleep, 0.05).add_done_callback(shut)
    assert "callback" in str(found.get(timeout=10))


def test_map_reads_its_iterables_at_once_and_calls_at_once(executor: OncueExecutor, server: Server) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(3):
            read.append(i)
            executor.submit(double, i)  # an iterable may use the executor
            yield i

    results = executor.map(double, numbers())
    assert read == [0, 1, 2]
    assert list(results) == [0, 2, 4]


def test_map_does_not_cancel_running_calls(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    server.world.sent = {0}
    results = executor.map(double, range(3), timeout=0.05)
    with pytest.raises(cf.TimeoutError):
        next(results)
    assert len(server.world.cancelled) == 2
    server.world.hold.set()


def test_map_timeout_starts_with_the_call(executor: OncueExecutor, server: Server) -> None:
    results = executor.map(double, range(2), timeout=1e-9)
    executor.submit(double, 3).result(10)  # told behind those
    assert list(results) == [0, 2]  # they are there, whenever they are asked for
    server.world.hold.clear()
    with pytest.raises(cf.TimeoutError):
        next(executor.map(double, range(2), timeout=1e-9))


def test_callbacks(executor: OncueExecutor, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """They run in order, each with the future; errors are logged; on a done future they run at once."""
    server.world.hold.clear()
    future = executor.submit(double, 1)
    seen: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def bad(_: Any) -> None:
        raise ValueError("mine")

    future.add_done_callback(lambda f: seen.put(("first", f)))
    future.add_done_callback(bad)
    future.add_done_callback(lambda f: seen.put(("second", f)))
    server.world.hold.set()
    assert [seen.get(timeout=10) for _ in range(2)] == [("first", future), ("second", future)]
    future.add_done_callback(lambda f: seen.put(("late", f)))
    assert seen.get_nowait() == ("late", future)


def test_calls_that_cannot_be_packed(executor: OncueExecutor) -> None:
    with pytest.raises(errors.CannotPack):
        executor.submit(double, threading.Lock())
    with pytest.raises(errors.CannotPack):
        executor.map(double, [threading.Lock()])
    future = executor.submit(threading.Lock)  # its result cannot
    assert isinstance(future.exception(10), errors.OncueError)
    assert executor.submit(double, 1).result(10) == 2


def test_exceptions(executor: OncueExecutor, server: Server) -> None:
    server.world.hold.clear()
    future = executor.submit(fail, "value")
    with pytest.raises(cf.TimeoutError):
        future.exception(0.01)
    assert future.cancel()
    with pytest.raises(cf.CancelledError):
        future.exception(0)
    server.world.hold.set()
    both = [executor.submit(fail, "value"), executor.submit(double, 1)]
    done, _ = cf.wait(both, 10, return_when=cf.FIRST_EXCEPTION)
    assert both[0] in done


def test_thread_ends_without_open_futures(executor: OncueExecutor) -> None:
    """An executor that was never shut down can then be collected, with its client."""
    executor.submit(double, 1).result(10)
    thread = executor._thread
    if thread is not None:
        thread.join(10)
    assert executor._thread is None
    assert executor.submit(double, 2).result(10) == 4


def test_a_program_ends_after_its_futures(server: Server) -> None:
    program = """
import sys, time
from oncue.client import Client
client = Client(sys.argv[1], "t")
client.executor().submit("f").add_done_callback(lambda f: print("called back:", type(f.exception()).__name__, flush=True))
print("at its end", flush=True)
"""
    server.world.hold.clear()
    process = subprocess.Popen([sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "at its end\n"
    server.world.hold.set()
    assert process.communicate(timeout=30)[0] == "called back: KeyError\n"
    assert process.returncode == 0


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


def test_flush_reports_rejections_that_no_future_raised(
    executor: OncueExecutor, client: Client, server: Server
) -> None:
    server.world.refuse = errors.NotFound("there is no endpoint 'moon'", remedy="look")
    seen, unseen = executor.submit(double, 1), executor.submit(double, 2)
    cf.wait([seen, unseen], 10)
    with pytest.raises(errors.NotFound, match="2 submitted tasks were not accepted"):
        client.flush()
    seen = executor.submit(double, 1)
    assert isinstance(seen.exception(10), errors.NotFound)
    client.flush()
    with pytest.raises(errors.NotFound):
        executor.submit(double, 1).result(10)
    client.flush()


def test_rejected(executor: OncueExecutor, server: Server) -> None:
    server.world.refuse = errors.Forbidden("not yours", remedy="ask")
    with pytest.raises(errors.Forbidden):
        executor.submit(double, 1).result(10)
