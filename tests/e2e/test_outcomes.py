"""Values, exceptions, output and crashes of functions, by the Python client."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from oncue.client import Client, Retry, polling
from oncue.errors import NotFound, TaskCancelled, TaskExpired, TaskFailed, TaskLost, TaskTimedOut, UnreadableResult
from tests.e2e.running import PATIENCE_S, System


@pytest.fixture(scope="module")
def client(shared: System) -> Iterator[Client]:
    with shared.client() as found:
        yield found


# ---------------------------------------------------------------- values


class Scan:
    """A class that is pickled by value: the worker cannot import this module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return type(other).__name__ == "Scan" and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


VALUES: dict[str, Any] = {
    "none": None,
    "big int": 2**200,
    "surrogate": "\ud800",
    "bytes": b"\x00\xff",
    "tuple": (1, (2, "x")),
    "set": {1, 2},
    "nested": {"a": [1.5, None, {"b": b"c"}], 7: True},
    "complex": 1 + 2j,
    "nan inside": [float("inf")],
    "path": Path("/a/b"),
    "class": int,
    "exception": ValueError("as a value", 3),
    "large text": "ä" * 400_000,
}


@pytest.mark.parametrize("name", VALUES)
def test_values_round_trip(client: Client, name: str) -> None:
    value = VALUES[name]
    found = client.submit(lambda x: x, value).result(PATIENCE_S)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_arrays_and_own_classes(client: Client) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1_000_000, dtype="float32").reshape(1000, 1000)  # 4 MB: a blob each way

    def twice(a: Any) -> Any:
        return a * 2, a.dtype, a.shape

    found, dtype, shape = client.submit(twice, array).result(PATIENCE_S)
    assert numpy.array_equal(found, array * 2)
    assert (dtype, shape) == (array.dtype, (1000, 1000))
    assert client.submit(lambda s: s, Scan("x")).result(PATIENCE_S) == Scan("x")


def test_results_are_instances_of_the_scripts_own_classes(client: Client) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("class Volume:\n    made = 0\n    def __init__(self, n): self.n = n\n", space)
    exec("def make(n):\n    Volume.made += 1\n    return Volume(n)\n", space)
    made = client.gather(client.map(space["make"], range(3)), PATIENCE_S)
    assert [v.n for v in made] == [0, 1, 2]
    assert {type(v) for v in made} == {space["Volume"]}
    assert space["Volume"].made == 0
    assert client.submit(lambda v: v, made[2]).result(PATIENCE_S).n == 2


def only_there() -> Any:
    import types

    class Strange:
        __module__ = "only_there"
        __qualname__ = "Strange"

    sys.modules["only_there"] = module = types.ModuleType("only_there")
    module.Strange = Strange  # type: ignore[attr-defined]
    return Strange()


def test_a_result_that_cannot_be_unpickled_raises(client: Client) -> None:
    task = client.submit(only_there)
    for _ in range(2):
        with pytest.raises(UnreadableResult, match="No module named 'only_there'") as caught:
            task.result(PATIENCE_S)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        assert caught.value.task_id == task.id
        assert b"Strange" in caught.value.raw
    assert task.info().state == "succeeded"
    (found,) = client.gather([task], return_exceptions=True)
    assert isinstance(found, UnreadableResult)


def test_one_list_passed_twice_stays_one_list(client: Client) -> None:
    def both(a: list[int], b: list[int]) -> tuple[list[int], bool]:
        a.append(1)
        return b, a is b

    row: list[int] = []
    assert client.submit(both, row, row).result(PATIENCE_S) == ([1], True)
    assert client.submit(both, [], []).result(PATIENCE_S) == ([], False)


class ScanError(Exception):
    def __init__(self, number: int, *, where: str) -> None:
        super().__init__(f"scan {number} at {where}")


def raising(kind: str) -> None:
    print("before", kind)
    if kind == "builtin":
        raise KeyError("missing")
    if kind == "own":
        raise ScanError(3, where="2bm")
    if kind == "chained":
        try:
            raise OSError(28, "No space left on device")
        except OSError as e:
            raise RuntimeError("could not write") from e
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "unprintable":

        class Bad(Exception):
            def __str__(self) -> str:
                raise ValueError("no words")

        raise Bad
    raise MemoryError


@pytest.mark.parametrize(
    ("kind", "type_name", "words"),
    [
        ("builtin", "KeyError", "missing"),
        ("own", "ScanError", "scan 3 at 2bm"),
        ("chained", "RuntimeError", "could not write"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", ""),
        ("unprintable", "Bad", ""),
        ("memory", "MemoryError", ""),
    ],
)
def test_exceptions(client: Client, kind: str, type_name: str, words: str) -> None:
    task = client.submit(raising, kind)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - its type is compared
        task.result(PATIENCE_S)
    assert type(caught.value).__name__ == type_name
    failed = caught.value.__cause__
    assert isinstance(failed, TaskFailed)
    assert failed.type_name.rsplit(".")[-1] == type_name
    assert words in failed.message
    assert "raising" in failed.traceback
    info = task.info()
    assert info.output == f"before {kind}\n"
    assert info.why.startswith(failed.type_name)
    assert not info.why.endswith((":", ": "))
    assert info.accepted_us <= info.started_us
    if kind == "chained":
        assert "No space left on device" in failed.traceback


def test_a_result_that_cannot_be_pickled_fails_the_task(client: Client) -> None:
    with pytest.raises(TaskFailed) as caught:
        client.submit(lambda: (x for x in range(3))).result(PATIENCE_S)
    assert "generator" in str(caught.value)


# ---------------------------------------------------------------- deaths


def leave() -> None:
    print("last words", flush=True)
    os._exit(7)


def crash() -> None:
    ctypes.string_at(0)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_cpu() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (0, 1))
    while True:
        pass


def out_of_memory() -> int:
    """Fail an allocation, in C code that does not check it, as a batch system may."""
    import resource

    limit = 300 << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(1 << 30))
    ctypes.memset(block or 0, 1, 1 << 20)
    return 0


DEATHS: list[tuple[Callable[[], Any], str]] = [
    (leave, "code 7"),
    (crash, "SIGSEGV"),
    (killed, "SIGKILL"),
    (out_of_cpu, "SIGXCPU"),
    (out_of_memory, "SIGSEGV"),
]


@pytest.mark.parametrize(("death", "words"), DEATHS, ids=lambda d: getattr(d, "__name__", ""))
def test_a_worker_crash_fails_its_task_and_names_the_cause(
    client: Client, death: Callable[[], Any], words: str
) -> None:
    others = client.map(lambda x: x + 1, range(300))
    task = client.submit(death)
    with pytest.raises(TaskLost) as caught:
        task.result(PATIENCE_S)
    assert words in caught.value.message
    assert caught.value.remedy
    info = task.info()
    assert (info.state, info.attempt) == ("lost", 1)
    if death is leave:
        assert info.output == "last words\n"
    assert client.gather(others, PATIENCE_S) == list(range(1, 301))
    assert {t.info().attempt for t in others[::100]} == {1}
    assert client.submit(pow, 2, 2).result(PATIENCE_S) == 4


def count_then_die(path: str, survive: int) -> int:
    with open(path, "a") as f:
        f.write("x")
    with open(path) as f:
        count = len(f.read())
    if count < survive:
        os._exit(1)
    return count


def test_lost_attempts_are_retried_by_policy(client: Client, tmp_path: Path) -> None:
    policy = Retry(max=2, backoff="constant", base=0.01, on=("lost",))
    careful = client.with_options(retry=policy)
    assert careful.submit(count_then_die, str(tmp_path / "a"), 3).result(PATIENCE_S) == 3
    with pytest.raises(TaskLost):
        careful.submit(count_then_die, str(tmp_path / "b"), 9).result(PATIENCE_S)
    assert (tmp_path / "b").read_text() == "xxx"
    with pytest.raises(TaskLost):  # not asked for: not retried
        client.submit(count_then_die, str(tmp_path / "c"), 2).result(PATIENCE_S)
    assert (tmp_path / "c").read_text() == "x"


def hold(flag: str, until: str) -> str:
    open(flag, "w").close()
    while not os.path.exists(until):
        time.sleep(0.005)
    return "let go"


def test_timeouts_cancels_and_expiry_are_their_own_errors(shared: System, client: Client, tmp_path: Path) -> None:
    never = str(tmp_path / "never")
    with pytest.raises(TaskTimedOut) as late:
        client.with_options(timeout=0.2).submit(hold, str(tmp_path / "t"), never).result(PATIENCE_S)
    assert "0.2 s" in late.value.message
    workers = [client.submit(hold, str(tmp_path / f"w{i}"), str(tmp_path / "go")) for i in range(2)]
    shared.await_true(lambda: all((tmp_path / f"w{i}").exists() for i in range(2)), "both workers are at work")
    queued = client.submit(hold, str(tmp_path / "queued"), never)
    expiring = client.with_options(expires=0.2).submit(hold, str(tmp_path / "expiring"), never)
    queued.cancel()
    with pytest.raises(TaskCancelled):
        queued.result(PATIENCE_S)
    with pytest.raises(TaskExpired):
        expiring.result(PATIENCE_S)
    workers[0].cancel()
    with pytest.raises(TaskCancelled):
        workers[0].result(PATIENCE_S)
    (tmp_path / "go").touch()
    assert workers[1].result(PATIENCE_S) == "let go"
    assert not (tmp_path / "queued").exists()
    assert not (tmp_path / "expiring").exists()


def test_an_unknown_task_id(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "YOUNG_S", 0.2)
    with pytest.raises(NotFound, match="0192f0c1e5a07c3e8a1b2c3d4e5f0000"):
        client.task("0192f0c1e5a07c3e8a1b2c3d4e5f0000").result()
    mine = client.submit(divmod, 7, 2)
    assert client.task(mine.id).result(PATIENCE_S) == (3, 1)


def test_an_executor_cancels_waiting_tasks_and_leaves_running_ones(stopped: System, tmp_path: Path) -> None:
    stopped.up("--workers", "2")  # its endpoint has run no short tasks, after which it would prefetch many
    stopped.await_connected()
    go = tmp_path / "go"
    with stopped.client() as client:
        executor = client.executor()
        try:
            running = [executor.submit(hold, str(tmp_path / f"r{i}"), str(go)) for i in range(2)]
            stopped.await_true(lambda: all((tmp_path / f"r{i}").exists() for i in range(2)), "both workers are at work")
            waiting = [executor.submit(hold, str(tmp_path / f"w{i}"), str(go)) for i in range(40)]
            assert all(f.running() for f in running)
            assert not any(f.cancel() for f in running)
            assert waiting[-1].cancel()
            assert not waiting[-1].running()
        finally:
            Timer(0.1, go.touch).start()
            executor.shutdown(cancel_futures=True)
        assert [f.result(0) for f in running] == ["let go", "let go"]
        cancelled = [f.cancelled() for f in waiting]
        assert sum(cancelled) > 30  # some few are at the endpoint, to run next
        for i, future in enumerate(waiting):  # each is one or the other
            assert (tmp_path / f"w{i}").exists() is not cancelled[i]
            with suppress(TaskCancelled):
                assert future.task.result(PATIENCE_S) == ("let go" if not cancelled[i] else None)


# ---------------------------------------------------------------- large payloads


def digest_and_grow(data: bytes) -> tuple[str, bytes]:
    return hashlib.sha256(data).hexdigest(), data[::-1]


def test_small_tasks_pass_a_transfer_of_200_mb_each_way(shared: System, client: Client) -> None:
    """Small tasks submitted meanwhile are answered before the large one."""
    data = os.urandom(1 << 20) * 200
    with shared.client() as carrier, ThreadPoolExecutor(1) as pool:
        large = pool.submit(lambda: carrier.submit(digest_and_grow, data).result(120))
        rounds = 0
        while not large.done():
            assert client.submit(pow, 2, 3).result(PATIENCE_S) == 8
            rounds += 1
        digest, back = large.result()
    assert rounds >= 20, rounds
    assert digest == hashlib.sha256(data).hexdigest()
    assert back == data[::-1]


def test_a_redefined_function_is_submitted_in_its_current_form(shared: System) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("K, ALL = 1, [1]\ndef helper(x): return x\ndef f(x): return helper(x) + K + ALL[0]\n", space)
    with shared.client() as client:
        assert client.submit(space["f"], 7).result(PATIENCE_S) == 9
        exec("def helper(x): return 1000", space)
        assert client.submit(space["f"], 7).result(PATIENCE_S) == 1002
        exec("K = 50", space)
        assert client.submit(space["f"], 7).result(PATIENCE_S) == 1051
        space["ALL"][0] = 2
        assert client.gather(client.map(space["f"], [7, 8]), timeout=PATIENCE_S) == [1052, 1052]
