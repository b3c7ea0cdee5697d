"""The client against a real HTTP server: outcomes in any order, lost answers, restarts, large and untrusted values."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from oncue import errors
from oncue.client import Client, Options, Retry, as_completed, polling, unaccepted
from oncue.client.batch import Batch
from oncue.functions import Watch
from oncue.functions.body import Packed
from oncue.protocol import payload
from tests.unit.client.client_server import Server, World, serving


def shipped(fn: Any) -> Packed:
    """As pack_function gives it, with the content that this server runs."""
    body = cloudpickle.dumps(fn)
    name = getattr(fn, "__name__", "fn")
    return Packed(hashlib.sha256(body).hexdigest(), body, name, "", "", "")


@pytest.fixture(autouse=True)
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test server runs bare pickles, not FunctionBody: what is tested here is the way there and back."""
    monkeypatch.setitem(sys.modules, "oncue.functions", SimpleNamespace(pack_function=shipped, Watch=Watch))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "t", patience=10) as client:
        yield client


def double(x: int) -> int:
    return 2 * x


def shout(text: str) -> str:
    return text.upper()


def fail(kind: str) -> None:
    raise {"value": ValueError, "key": KeyError}.get(kind, RuntimeError)(kind)


def test_submit_and_result(client: Client) -> None:
    task = client.submit(double, 21)
    assert task.result(10) == 42
    assert task.result() == 42
    assert task.done()
    assert task.status() == "succeeded"
    assert task.exception() is None
    assert len(task.id) == 32


def test_keywords_go_to_the_function(client: Client) -> None:
    careful = client.with_options(retry=2, timeout=3)
    assert careful.submit(dict, retry=7, timeout=1).result(10) == {"retry": 7, "timeout": 1}
    assert client.call(dict, (), {"endpoint": "mine"}, careful.options).result(10) == {"endpoint": "mine"}


def test_an_endpoint_is_named_the_same_way_with_options_and_without(client: Client, server: Server) -> None:
    careful = client.with_options(endpoint="polaris", timeout=3)
    for caller in (client, careful):
        asked = [
            caller.submit(double, 1, endpoint="aurora"),
            *caller.map(double, [1], endpoint="aurora"),
            *caller.starmap(double, [(1,)], endpoint="aurora"),
            caller.executor(endpoint="aurora").submit(double, 1).task,
        ]
        assert client.gather(asked, timeout=10) == [2] * 4
        assert {t.endpoint for t in asked} == {"aurora"}
    assert {b.endpoint for b in server.world.batches} == {"aurora"}
    assert {b.timeout_ms for b in server.world.batches} == {None, 3_000}
    assert careful.submit(double, 1).endpoint == "polaris"
    assert client.starmap(pow, [(2, 5)])[0].result(10) == 32
    with pytest.raises(errors.Invalid, match="endpoint"):
        careful.submit(double, 1, endpoint=3)  # type: ignore[arg-type]


def test_options_travel(client: Client, server: Server) -> None:
    options = client.with_options(retry=Retry(max=2, base=0.5, on=("timeout",)), timeout=1.5, expires=60)
    options.submit(double, 1).result(10)
    sent = server.world.batches[-1]
    assert sent.retry is not None
    assert (sent.retry.max, sent.retry.base_ms, sent.retry.on) == (2, 500, ["timeout"])
    assert (sent.timeout_ms, sent.expires_ms) == (1500, 60_000)


def test_unknown_and_wrong_options(client: Client) -> None:
    with pytest.raises(errors.Invalid, match="no option 'retries'"):
        client.with_options(retries=1)
    with pytest.raises(errors.Invalid, match="not right"):
        client.with_options(timeout="soon")
    assert client.with_options(timeout=2).with_options(retry=1).options == Options(retry=1, timeout=2)


@pytest.mark.parametrize("seconds", [0, 0.0, -1, 0.0004, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["timeout", "expires"])
def test_a_limit_of_nothing_is_not_taken_for_no_limit(client: Client, name: str, seconds: float) -> None:
    with pytest.raises(errors.Invalid, match=f"^{name} is ") as caught:
        client.with_options(**{name: seconds})
    assert caught.value.remedy == f"leave {name} out for no limit"
    with pytest.raises(errors.Invalid):
        Options(**{name: seconds})


@pytest.mark.parametrize("early", [False, True])
def test_map_in_batches(client: Client, server: Server, early: bool) -> None:
    server.world.early = early
    tasks = client.map(double, range(3000))
    assert client.gather(tasks, timeout=30) == [2 * i for i in range(3000)]
    assert [len(b.payloads) for b in server.world.batches] == [1024, 1024, 952]
    assert len({t.id for t in tasks}) == 3000
    for task in (tasks[0], tasks[1024], tasks[2048]):  # outcomes may overtake their batch's answer
        task._wait_accepted()
    assert not client.session.outcomes.batches


def test_a_loop_of_submits_travels_in_bulk(client: Client, server: Server) -> None:
    tasks = [client.submit(double, i) for i in range(2000)]
    assert [t.result(30) for t in tasks] == [2 * i for i in range(2000)]
    assert len(server.world.batches) < 200


def test_many_threads(client: Client) -> None:
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        results[n] = [t.result(30) for t in [client.submit(double, n * 1000 + i) for i in range(100)]]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {n: [2 * (n * 1000 + i) for i in range(100)] for n in range(8)}


def test_outcome_before_the_answer_and_doubled(client: Client, server: Server) -> None:
    server.world.early, server.world.doubles = True, 3
    assert client.gather(client.map(double, range(50)), timeout=10) == [2 * i for i in range(50)]
    seen: list[str] = []
    task = client.submit(double, 4)
    task.add_done_callback(lambda t: seen.append(t.id))
    assert task.result(10) == 8
    client.submit(double, 5).result(10)  # behind the doubles of the first
    assert seen == [task.id]


def test_a_lost_answer_is_sent_again_with_the_same_ids(client: Client, server: Server) -> None:
    server.world.lose_answers = 2
    tasks = client.map(double, range(10))
    assert client.gather(tasks, timeout=10) == [2 * i for i in range(10)]
    tasks[0]._wait_accepted()  # the outcomes come before the third answer
    assert len(server.world.tasks) == 10
    assert len({b.key for b in server.world.batches}) == 1
    assert len(server.world.batches) >= 3


def test_restart_while_waiting() -> None:
    world = World()
    first = Server(world)
    client = Client(first.url, "t", patience=20)
    world.hold.clear()
    task = client.submit(double, 3)
    assert world.asked.wait(10)
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(task.result(20)))
    waiter.start()
    world.mute = True  # what the dying server would tell is lost with it
    world.hold.set()
    assert world.ran.wait(10)  # before the server dies: nothing here would run it again
    first.stop()
    world.mute = False
    late = client.submit(double, 4)  # while nothing listens
    second = Server(world, first.port)
    try:
        waiter.join(20)
        assert results == [6]
        assert late.result(20) == 8
        assert len(world.tasks) == 2
    finally:
        client.close()
        second.stop()


def test_an_outcome_that_the_stream_forgot_is_asked_for(server: Server) -> None:
    server.world.mute = True
    with Client(server.url, "t") as client:
        task = client.submit(double, 3)
        assert client.task(task.id).result(10) == 6
        client.session.outcomes.request_open(0.0)
        assert task.result(1) == 6


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


def test_what_the_server_has_not_accepted_does_not_go_on() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=10)
        client.submit(double, 1).result(10)
    late = client.submit(double, 2)
    with pytest.raises(TimeoutError, match=rf"^the server has not accepted task {late.id} in 0\.05 s"):
        late.result(0.05)
    with pytest.raises(TimeoutError, match="1 of them the server has not accepted yet"):
        list(as_completed([late], 0.05))
    client.close(flush=False)


def test_a_task_that_nobody_knows_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = "0192f0c1e5a07c3e8a1b2c3d4e5f0000"
    with pytest.raises(TimeoutError, match=f"knows no task {unknown} after 0.05 s"):
        client.task(unknown).result(0.05)
    monkeypatch.setattr(polling, "YOUNG_S", 0.3)
    with pytest.raises(errors.NotFound, match=unknown) as caught:
        client.task(unknown).result()
    assert "oncue tasks list" in caught.value.remedy
    assert isinstance(client.task(unknown).exception(), errors.NotFound)
    mine = client.submit(double, 3)
    assert {t.id for t in as_completed([client.task(unknown), client.task(mine.id)], 20)} == {unknown, mine.id}
    with pytest.raises(errors.NotFound):
        client.gather([client.task(mine.id), client.task(unknown)])


def test_a_task_that_another_process_submits_now_is_waited_for(server: Server) -> None:
    """Its id is known before the server has it."""
    with Client(server.url, "t") as client, Client(server.url, "t") as other:
        other.me  # noqa: B018
        batch = Batch(other.session, "ada", shipped(double).id, "double", Options())
        batch.add(payload.pack_args((4,), {}))
        other.register(shipped(double))
        results: list[int] = []
        waiter = threading.Thread(target=lambda: results.append(client.task(batch.id(0).hex()).result(20)))
        waiter.start()
        assert server.world.questions.wait(10)  # it has been asked for, and nobody knew it
        other.session.sender._post(batch)
        waiter.join(20)
        assert results == [8]


def test_failures(client: Client) -> None:
    task = client.submit(fail, "value")
    with pytest.raises(errors.TaskFailed, match="ValueError: value") as caught:
        task.result(10)
    assert isinstance(caught.value.__cause__, ValueError)
    assert 'File "user.py"' in str(caught.value)
    assert caught.value.task_id == task.id
    assert caught.value.type_name == "ValueError"
    assert isinstance(task.exception(), errors.TaskFailed)
    with pytest.raises(errors.TaskFailed):
        client.gather([client.submit(double, 1), task])
    found = client.gather([client.submit(double, 1), task], return_exceptions=True)
    assert found[0] == 2
    assert isinstance(found[1], errors.TaskFailed)


def test_cancel(client: Client, server: Server) -> None:
    server.world.hold.clear()
    task = client.submit(double, 3)
    task.cancel()
    server.world.hold.set()
    with pytest.raises(errors.TaskCancelled):
        task.result(10)
    assert task.status() == "cancelled"


def test_refused_by_the_server(client: Client, server: Server) -> None:
    server.world.refuse = errors.NotFound("there is no endpoint 'moon'", remedy="look at `oncue endpoints list`")
    task = client.submit(double, 3, endpoint="moon")
    with pytest.raises(errors.NotFound, match="moon"):
        task.result(10)
    assert isinstance(task.exception(), errors.NotFound)
    assert task.done()
    server.world.refuse = None
    assert client.submit(double, 3).result(10) == 6


def test_large_payloads_and_results(client: Client, server: Server) -> None:
    big = b"\xff" * 3_000_000
    assert client.submit(lambda b: b, big).result(20) == big
    assert all(len(p) < 1000 for _, p in server.world.tasks.values())
    task = client.submit(lambda: b"z" * 2_000_000)
    assert task.wait(20)
    server.world.blobs.clear()
    with pytest.raises(errors.BlobMissing):
        task.result(10)


def test_damaged_blob(client: Client, server: Server) -> None:
    task = client.submit(lambda: b"z" * 2_000_000)
    assert task.wait(20)
    for name, content in server.world.blobs.items():
        server.world.blobs[name] = b"y" + content[1:]
    with pytest.raises(errors.BlobMissing, match="other bytes"):
        task.result(10)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("bomb-went-off",))


def test_pickles_of_strangers_stay_raw(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.world.owner = "mallory"
    with Client(server.url, "t") as client:
        with pytest.raises(errors.UntrustedResult) as caught:
            client.submit(Bomb, endpoint="hers").result(10)
        assert caught.value.raw[:1] == b"p"
        assert not (tmp_path / "bomb-went-off").exists()
        assert client.submit(double, 2, endpoint="hers").result(10) == 4  # plain data is harmless
    with Client(server.url, "t", trust=["hers"]) as client:
        assert client.submit(complex, 1, 2, endpoint="hers").result(10) == 1 + 2j


def test_a_name_is_another_endpoint_for_another_person(server: Server, tmp_path: Any, monkeypatch: Any) -> None:
    """As an administrator sees it: a task at somebody else's endpoint, which is called as the own one is."""
    monkeypatch.chdir(tmp_path)
    with Client(server.url, "t") as client:
        task_id = client.submit(Bomb).id
        server.world.endpoint_id = "ep_hers"
        with pytest.raises(errors.UntrustedResult):
            client.task(task_id).result(10)
        assert not (tmp_path / "bomb-went-off").exists()
        good = client.submit(complex, 1, 2)
        server.world.endpoint_id = "ep_mine"
        assert client.task(good.id).result(10) == 1 + 2j


def test_as_completed_and_found_tasks(client: Client, server: Server) -> None:
    mine = client.map(double, range(20))
    assert {t.result() for t in as_completed(mine, 10)} == set(range(0, 40, 2))
    found = [client.task(t.id) for t in mine[:5]]
    assert sorted(t.result() for t in as_completed(found, 10)) == [0, 2, 4, 6, 8]
    with pytest.raises(errors.Invalid):
        client.task("xyz")


def test_nothing_listens() -> None:
    with serving() as server:
        pass
    with (
        Client(server.url, "t", patience=1) as client,
        pytest.raises(errors.Unreachable, match="nothing answers") as caught,
    ):
        client.submit(double, 1)
    assert "oncue up" in caught.value.remedy


def test_the_server_stays_away() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=0.3)
        server.world.hold.clear()
        waiting = client.submit(double, 1)
        waiting._wait_accepted()
        server.world.mute = True
    later = client.submit(double, 2)
    with pytest.raises(errors.Unreachable):
        waiting.result(20)
    with pytest.raises(errors.Unreachable):
        later.result(20)
    with pytest.raises(errors.Unreachable):
        list(as_completed([waiting], 20))
    client.close(flush=False)


def test_no_server_is_known(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    with Client(data=tmp_path) as client, pytest.raises(errors.Unreachable, match="no server is known"):
        _ = client.me


def test_local_server_file(server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_URL", raising=False)
    (tmp_path / "local.json").write_text(f'{{"url": "{server.url}", "token": "t", "pid": 1}}')
    with Client(data=tmp_path) as client:
        assert client.submit(double, 2).result(10) == 4


def test_the_local_token_is_not_told_to_others(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from oncue.client.discovery import find_server

    monkeypatch.delenv("ONCUE_URL", raising=False)
    monkeypatch.delenv("ONCUE_TOKEN", raising=False)
    (tmp_path / "local.json").write_text('{"url": "http://127.0.0.1:1", "token": "secret", "pid": 1}')
    with pytest.raises(errors.Unauthorized, match=r"no token for the server at http://evil\.example"):
        find_server("http://evil.example", "", tmp_path)
    assert find_server("http://evil.example/", "mine", tmp_path) == ("http://evil.example", "mine")
    assert find_server("http://127.0.0.1:1/", "", tmp_path) == ("http://127.0.0.1:1", "secret")
    assert find_server("", "", tmp_path) == ("http://127.0.0.1:1", "secret")


def test_an_address_without_a_token_says_what_to_set(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONCUE_TOKEN", raising=False)
    monkeypatch.setenv("ONCUE_URL", "http://127.0.0.1:1")
    with Client(data=tmp_path) as client, pytest.raises(errors.Unauthorized) as caught:
        client.submit(double, 1)
    assert "ONCUE_TOKEN" in caught.value.remedy
    assert "token=" in caught.value.remedy


def test_closed_and_forgotten_clients(server: Server) -> None:
    client = Client(server.url, "t")
    task = client.submit(double, 1)
    client.close()
    client.close()
    assert task._batch.accepted  # close waits for that
    with pytest.raises(errors.Invalid, match="closed"):
        client.submit(double, 2)
    forgotten = Client(server.url, "t").submit(double, 8)
    assert forgotten.result(10) == 16  # the handle keeps its client
    del forgotten
    gc.collect()


def test_a_collection_keeps_its_client(server: Server) -> None:
    assert Client(server.url, "t").endpoints.get("local").state == "connected"
    with pytest.raises(errors.NotFound, match="no such task"):
        Client(server.url, "t").tasks.get("00" * 16)
    with pytest.raises(errors.Unauthorized):
        Client(server.url, "bad").endpoints.get("local")
    with pytest.raises(errors.Unauthorized):
        next(Client(server.url, "bad").live())
    client = Client(server.url, "t")
    sender, events = client.session.sender, client.events
    del client
    gc.collect()
    assert events.emit({"id": "1", "type": "t", "source": "s"}).count == 1
    del events
    assert sender.closed  # at once: there is no cycle that keeps a forgotten client


def test_emit_and_problems(client: Client) -> None:
    assert client.emit(type="t", source="s", data={"a": 1}).count == 1
    assert client.emit(type="t", source="s", data=b"\x00").count == 1
    assert client.emit(type="t", source="s", id="mine").id == "mine"
    assert len(client.emit(type="t", source="s").id) == 32
    with pytest.raises(errors.Invalid, match=r"data\.a: nan"):
        client.emit(type="t", source="s", data={"a": float("nan")})
    with pytest.raises(errors.Invalid, match="cannot be written as JSON"):
        client.events.emit({"id": "1", "type": "t", "source": "s", "run": object()})
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(errors.Invalid, match="cannot be written as JSON"):
        client.emit(type="t", source="s", data=endless)
    with pytest.raises(errors.NotFound) as caught:
        client.tasks.get("00" * 16)
    assert caught.value.remedy == "look at the list"


def test_an_events_time_is_now_unless_it_is_given(client: Client, server: Server) -> None:
    before = datetime.now(UTC)
    client.emit(type="t", source="s")
    client.emit(type="t", source="s", time="2026-11-23T20:59:29.5Z")
    client.emit(type="t", source="s", time=datetime(2026, 11, 23, 21, 59, 29, tzinfo=timezone(timedelta(hours=1))))
    now, *given = (e["time"] for e in server.world.events)
    assert now.endswith("Z")
    assert before <= datetime.fromisoformat(now) <= datetime.now(UTC)
    assert given == ["2026-11-23T20:59:29.5Z", "2026-11-23T20:59:29.000000Z"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child(client: Client, server: Server) -> None:
    before = client.submit(double, 10)
    assert before.result(10) == 20
    server.world.hold.clear()
    open_task = client.submit(double, 11)
    open_task._wait_accepted()
    server.world.hold.set()
    pid = os.fork()
    if pid == 0:
        try:
            good = client.submit(double, 3).result(10) == 6 and open_task.result(10) == 22
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert open_task.result(10) == 22
    assert client.submit(double, 4).result(10) == 8


def test_a_function_is_registered_once(client: Client, server: Server) -> None:
    for i in range(5):
        client.submit(double, i).result(10)
    assert len(server.world.functions) == 1
    client.submit(functools.partial(double, 1)).result(10)
    assert len(server.world.functions) == 2
    with pytest.raises(errors.Invalid, match="cannot be run"):
        client.submit(3)  # type: ignore[arg-type]


def test_callbacks_that_fail_harm_nobody(client: Client, caplog: pytest.LogCaptureFixture) -> None:
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


def test_values_arrive_as_they_were(client: Client) -> None:
    for value in (2**70, -(2**63), 2**64 - 1, "\ud800", b"", None, True, 1.5, (1, 2), {"a": [1]}, {1: 2}, 1j):
        found = client.submit(lambda v: v, value).result(10)
        assert found == value
        assert type(found) is type(value)


def test_an_error_in_the_block_is_not_hidden_by_closing() -> None:
    with serving() as server:
        client = Client(server.url, "t", patience=10, linger=0.1)
        assert client.me.subject == "ada"
        client.submit(double, 1).result(10)
    with pytest.raises(KeyError, match="mine") as caught, client:  # noqa: PT012
        lost = client.submit(double, 2)
        struggling(client)
        raise KeyError("mine")
    (note,) = caught.value.__notes__
    assert (
        "1 submitted task was not accepted: the client was closed before the server had accepted it; nothing " in note
    )
    assert lost.id in note


# ---------------------------------------------------------------- what is not accepted


@pytest.fixture
def alone() -> Iterator[tuple[Client, int]]:
    """A client whose server has gone (from this port), and that knows the function."""
    with serving() as server:
        client = Client(server.url, "t", patience=20, linger=0.1)
        client.submit(double, 1).result(10)
    yield client, server.port
    client.close(flush=False)


def struggling(client: Client) -> None:
    """Until what is sent has met that nothing listens."""
    deadline = time.monotonic() + 20
    while client.session.sender.trouble is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_flush_waits_for_acceptance(client: Client, server: Server) -> None:
    client.flush()
    server.world.hold.clear()
    tasks = client.map(double, range(2000))
    client.flush()
    assert len(server.world.tasks) == 2000
    assert not any(t.done() for t in tasks)


def test_flush_tells_what_is_not_accepted_and_it_is_sent_on(alone: tuple[Client, int]) -> None:
    client, port = alone
    tasks = [*client.map(double, range(5)), client.submit(double, 5)]
    struggling(client)
    for timeout in (0.01, None):
        with pytest.raises(errors.Unreachable, match=r"^6 submitted tasks not accepted yet: nothing answers") as caught:
            client.flush(timeout)
        assert caught.value.details == {"count": 6, "tasks": [t.id for t in tasks[:3]]}
        assert f"({tasks[0].id}, {tasks[1].id}, {tasks[2].id} and 3 more)" in caught.value.message
        assert "sent on" in caught.value.remedy
    second = Server(World(), port)
    client.session.sender.linger_s = 20
    try:
        client.flush()
        assert len(second.world.tasks) == 6
    finally:
        client.close(flush=False)
        second.stop()


def test_a_function_that_is_new_while_the_server_is_away(alone: tuple[Client, int]) -> None:
    client, port = alone
    task = client.submit(shout, "a")
    many = client.map(shout, ["b", "c"])
    struggling(client)
    second = Server(World(), port)
    try:
        assert [t.result(20) for t in (task, *many)] == ["A", "B", "C"]
        assert [f.name for f in second.world.functions.values()] == ["shout"]
    finally:
        client.close(flush=False)
        second.stop()


@pytest.mark.parametrize("retry", [-1, Retry(max=-1)])
def test_retries_below_none_are_refused(client: Client, retry: Any) -> None:
    with pytest.raises(errors.Invalid, match="retry is -1; it is how often to try again: 0 or more"):
        client.with_options(retry=retry)


def test_close_tells_what_was_not_accepted(alone: tuple[Client, int]) -> None:
    client, _ = alone
    tasks = client.map(double, range(2))
    struggling(client)
    with pytest.raises(
        errors.Unreachable, match=r"^2 submitted tasks were not accepted: .*; nothing answers"
    ) as caught:
        client.close()
    assert caught.value.details == {"count": 2, "tasks": [t.id for t in tasks]}
    assert "oncue up" in caught.value.remedy
    assert "oncue tasks show" in caught.value.remedy
    with pytest.raises(errors.Unreachable, match="closed before the server had accepted"):
        tasks[0].result()
    client.close()


def test_what_the_server_refused_is_told_by_whoever_comes_first(client: Client, server: Server) -> None:
    server.world.refuse = errors.NotFound("there is no endpoint 'moon'", remedy="look at `oncue endpoints list`")
    task = client.submit(double, 1, endpoint="moon")
    with pytest.raises(
        errors.NotFound, match=f"1 submitted task was not accepted: there is no endpoint 'moon' .{task.id}"
    ):
        client.flush()
    client.flush()
    with pytest.raises(errors.NotFound):
        client.submit(double, 2, endpoint="moon").result(10)
    client.flush()
    assert isinstance(client.submit(double, 3, endpoint="moon").exception(10), errors.NotFound)
    client.submit(double, 4, endpoint="moon")
    with pytest.raises(errors.NotFound, match="1 submitted task was not accepted: there is no endpoint 'moon'"):
        client.close()


def test_many_refusals_are_counted_and_not_kept(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unaccepted, "KEPT", 2)
    server.world.refuse = errors.DiskFull("the disk is full", remedy="make room")
    tasks = [client.submit(double, i, endpoint=f"e{i}") for i in range(5)]  # a batch each
    assert all(t.wait(10) for t in tasks[:-1])
    with pytest.raises(errors.DiskFull, match=f"^5 submitted tasks were not accepted: the disk is full .{tasks[0].id}"):
        client.flush()


PROGRAM = """
import sys
from tests.unit.client.client_server import World, serving
from tests.unit.client.test_client import Client, double, shipped
import types
from oncue.functions import Watch
sys.modules["oncue.functions"] = types.SimpleNamespace(pack_function=shipped, Watch=Watch)

with serving() as server:
    client = Client(server.url, "t", patience=20, linger=float(sys.argv[3]))
    client.submit(double, 1).result(10)
if sys.argv[1] == "away":
    print(client.submit(double, 2).id)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("server", "code", "ends_with"), [("away", 0, 120), ("away", 3, 120), ("unused", 3, 3)])
def test_a_program_that_loses_tasks_at_its_end_says_so(server: str, code: int, ends_with: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server, str(code), "0.1"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ends_with, done.stderr
    assert "Traceback" not in done.stderr
    if server == "away":
        assert "oncue: 1 submitted task was not accepted: " in done.stderr
        assert done.stdout.strip() in done.stderr  # its id
    else:
        assert done.stderr == ""


def test_ctrl_c_at_a_programs_end_loses_no_word() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "away", "0", "60"],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "waiting for the server" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 120, err
    assert "1 submitted task was not accepted" in err
    assert out.strip() in err
    assert "Traceback" not in err
