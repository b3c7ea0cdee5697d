"""What a function raises arrives as Python has it, by every way of asking."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from oncue import AsyncClient, TaskFailed, as_completed
from oncue.client import Client
from tests.e2e.running import PATIENCE_S, System

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def client(shared: System) -> Iterator[Client]:
    with shared.client() as found:
        yield found


def missing() -> None:
    open("/no/such/scan.h5")  # noqa: SIM115


def key() -> None:
    raise KeyError("k")


def several() -> None:
    own = ValueError("one")
    own.add_note("at 2bm")
    raise ExceptionGroup("scans", [own, ExceptionGroup("inner", [missing_of(2)])])


def missing_of(n: int) -> OSError:
    return FileNotFoundError(n, "No such file", "/x")


def decode() -> None:
    b"\xff".decode()


def leave() -> None:
    sys.exit(3)


def chained() -> None:
    try:
        key()
    except KeyError as e:
        raise RuntimeError("no scan") from e


class ScanError(Exception):
    def __init__(self, scan: int, *, beamline: str) -> None:
        super().__init__(f"scan {scan} at {beamline}")
        self.scan = scan


def own() -> None:
    raise ScanError(3, beamline="2bm")


RAISING = {f.__name__: f for f in (missing, key, several, decode, leave, chained, own)}


def told(error: BaseException) -> Any:
    """Return what a caller sees of an exception."""
    if isinstance(error, BaseExceptionGroup):
        return type(error), error.message, [told(e) for e in error.exceptions]
    attributes = [getattr(error, n, None) for n in ("errno", "filename", "code", "start", "scan")]
    return type(error), error.args, attributes, getattr(error, "__notes__", None)


def raised(get: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - compared by told()
        get()
    return caught.value


@pytest.mark.parametrize("name", RAISING)
def test_each_way_of_asking_raises_the_same_exception(client: Client, name: str) -> None:
    function = RAISING[name]
    local = raised(function)
    task = client.submit(function)
    with client.executor() as executor:
        future = executor.submit(function)
        mapped = next(as_completed([task], PATIENCE_S))
        found = [
            raised(lambda: task.result(PATIENCE_S)),
            task.exception(PATIENCE_S),
            mapped.exception(),
            client.task(task.id).exception(PATIENCE_S),
            raised(lambda: client.gather([task], PATIENCE_S)),
            client.gather([task], PATIENCE_S, return_exceptions=True)[0],
            raised(lambda: future.result(PATIENCE_S)),
            future.exception(),
            raised(lambda: list(executor.map(lambda _: function(), [1]))),
            raised(lambda: asyncio.run(_awaited(executor.submit(function)))),
        ]

    for error in found:
        assert isinstance(error, BaseException)
        assert told(error) == told(local)
        cause = error.__cause__
        assert isinstance(cause, TaskFailed)
        assert f"in {name}" in cause.traceback
        assert cause.task_id


async def _awaited(future: futures.Future[Any]) -> Any:
    return await asyncio.wrap_future(future)


def test_the_cause_is_in_the_traceback(client: Client) -> None:
    error = client.submit(chained).exception(PATIENCE_S)

    assert isinstance(error, RuntimeError)
    cause = error.__cause__
    assert isinstance(cause, TaskFailed)
    assert "KeyError: 'k'\n\nThe above exception was the direct cause" in cause.traceback


def test_a_file_that_is_not_there_names_itself(client: Client) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        client.submit(missing).result(PATIENCE_S)

    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/scan.h5")


def test_the_traceback_begins_with_the_users_own_line(client: Client) -> None:
    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise ValueError("late")

    for function in (key, coroutine):
        error = client.submit(function).exception(PATIENCE_S)
        assert error is not None
        cause = error.__cause__
        assert isinstance(cause, TaskFailed)
        first = cause.traceback.splitlines()[1]
        assert f"in {function.__name__}" in first


def test_an_exit_code_is_that_of_invoke(shared: System) -> None:
    path = shared.write("leaving.py", "import sys\n\ndef leave(code):\n    sys.exit(code)\n")

    shared.oncue("invoke", f"{path}:leave", "--arg", "code:=3", code=3)
    shared.oncue("invoke", f"{path}:leave", "--arg", "code:=0", code=1)
    shared.oncue("invoke", f"{path}:leave", "--arg", "code=why", code=1)


def test_a_class_of_the_users_own_module_is_caught_by_its_name(
    client: Client, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "beam_errors.py").write_text(
        "class BeamLost(Exception):\n    def __init__(self, mA, *, at):\n"
        "        super().__init__(f'{mA} mA')\n        self.at = at\n\n"
        "def expose(mA):\n    raise BeamLost(mA, at='2bm')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import beam_errors  # type: ignore[import-not-found]

    with pytest.raises(beam_errors.BeamLost, match="3 mA") as caught:
        client.submit(beam_errors.expose, 3).result(PATIENCE_S)

    assert caught.value.at == "2bm"


def test_a_script_that_does_not_catch_it_ends_as_python_does(shared: System) -> None:
    script = shared.write(
        "uncaught.py",
        "import sys\nfrom oncue import Client\n\ndef leave():\n    sys.exit(3)\n\n"
        "with Client() as client:\n    client.submit(leave).result(60)\n",
    )

    done = subprocess.run([sys.executable, script], env=shared.env, capture_output=True, timeout=120, check=False)

    assert (done.returncode, done.stderr) == (3, b"")


def stop() -> None:
    raise StopIteration(7)


def test_awaiting_raises_it_too(client: Client, shared: System) -> None:
    async def awaited(function: Any) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await client.submit(function)

    async def gathered() -> list[Any]:
        async with AsyncClient(shared.local["url"], shared.local["token"]) as own:
            tasks = [await own.submit(f) for f in (missing, leave)]
            assert len([task async for task in own.as_completed(tasks)]) == 2
            return await own.gather(tasks, return_exceptions=True)

    for function in (missing, key, several, decode, own):
        error = raised(lambda function=function: asyncio.run(awaited(function)))
        assert told(error) == told(raised(function))
    assert isinstance(
        raised(lambda: asyncio.run(awaited(stop))).__cause__, StopIteration
    )  # as in a coroutine of its own
    assert [type(e) for e in asyncio.run(gathered())] == [FileNotFoundError, SystemExit]
