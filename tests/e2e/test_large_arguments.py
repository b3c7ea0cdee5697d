"""Large arguments: stored once, fetched once, mapped at the worker, never lost."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.client import Client
from oncue.errors import BlobMissing, CannotPack, TaskFailed
from oncue.protocol.payload import BlobName, Ref, pack_ref
from tests.e2e.running import PATIENCE_S, System, has_ended, system_in

np = pytest.importorskip("numpy", reason="needs numpy", exc_type=ImportError)
pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("large")) as system:
        system.await_connected()
        yield system


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with system.client() as client:
        yield client


def stored(folder: Path) -> list[Path]:
    return [path for path in folder.glob("blobs/??/*") if path.stat().st_size > 1_000_000]


def total(array: Any, n: int) -> float:
    return float(array[n])


def test_the_same_array_in_five_calls_is_stored_and_fetched_once(system: System, client: Client) -> None:
    array = np.random.default_rng(1).random(1_000_000)
    before = stored(system.data), stored(system.data / "endpoints" / "local")
    found = client.gather([client.submit(total, array, n) for n in range(5)], PATIENCE_S)
    assert found == array[:5].tolist()
    after = stored(system.data), stored(system.data / "endpoints" / "local")
    assert [len(b) - len(a) for a, b in zip(before, after, strict=True)] == [1, 1]


def test_an_array_is_mapped_into_the_worker(client: Client) -> None:
    def base_of(array: Any) -> tuple[str, bool, bool]:
        base = array
        while getattr(base, "base", None) is not None:
            base = base.base
        owner = base.obj if isinstance(base, memoryview) else base
        array[0] = -1
        return type(owner).__name__, bool(array.flags.writeable), bool(array.flags.aligned)

    array = np.arange(500_000, dtype="float64")
    for _ in range(2):  # what the first call wrote into its array is not in the second one's
        assert client.submit(base_of, array).result(PATIENCE_S) == (mmap.mmap.__name__, True, True)
        assert client.submit(total, array, 0).result(PATIENCE_S) == 0.0


def test_a_value_is_put_once_for_many_calls(system: System, client: Client) -> None:
    before = len(stored(system.data))
    ref = client.put({"image": np.arange(400_000, dtype="float64"), "name": "x"})
    found = client.gather(client.starmap(lambda d, n: d["image"][n] + n, [(ref, n) for n in range(50)]), PATIENCE_S)
    assert found == [2.0 * n for n in range(50)]
    nested = client.submit(lambda values, *, key: (len(values), values[1]["name"], key["name"]), [1, ref], key=ref)
    assert nested.result(PATIENCE_S) == (2, "x", "x")
    assert len(stored(system.data)) - before == 1


def test_what_was_put_survives_a_killed_server(stopped: System) -> None:
    stopped.up()
    with stopped.client() as client:
        ref = client.put(np.arange(400_000, dtype="float64"))
    server = stopped.server
    os.kill(server.pid, signal.SIGKILL)
    stopped.await_true(lambda: has_ended(server), "the server is gone")
    stopped.up()
    stopped.await_connected()
    with stopped.client() as client:
        assert client.submit(total, ref, 7).result(PATIENCE_S) == 7.0


@pytest.mark.parametrize("mounted", [True, False], ids=["another disk", "no folder"])
def test_tasks_wait_for_a_store_that_is_away(stopped: System, mounted: bool) -> None:
    stopped.up("--workers", "1")
    agent = stopped.agent_and_workers()[0]
    blobs, away = stopped.data / "blobs", stopped.folder / "away"
    with stopped.client() as client:
        agent.suspend()
        task = client.submit(total, np.arange(400_000, dtype="float64"), 7)
        assert task.info().state == "waiting"
        blobs.rename(away)
        if mounted:
            blobs.mkdir()
            (blobs / "tmp").mkdir()
        agent.resume()

        stopped.await_true(
            lambda: "large arguments cannot be read" in task.info().why, "the task says what it waits for"
        )
        assert "not ok" in stopped.http("GET", "/health/ready").json["checks"]["blobs"]
        if mounted:
            (blobs / "tmp").rmdir()
            blobs.rmdir()
        away.rename(blobs)

        assert task.result(90) == 7.0
    stopped.await_true(lambda: stopped.http("GET", "/health/ready").json["checks"]["blobs"] == "ok", "it is well again")


def test_a_call_with_an_unknown_blob_fails_and_says_so(client: Client) -> None:
    ref = client.put(np.arange(400_000, dtype="float64"))
    good = Ref("0" * 64, 500_000, body=b"p\x80\x05N.", more=(BlobName("1" * 64, 9),))
    for wrong in (
        good,
        Ref("../../etc/passwd", 9, body=b"p", more=()),
        Ref("x", 9, more=(BlobName("0" * 64, 1),) * 999),
    ):
        ref.payload = pack_ref(wrong)
        with pytest.raises(TaskFailed, match="large arguments could not be fetched") as caught:
            client.submit(total, ref, 1).result(PATIENCE_S)
        assert "BlobMissing" in str(caught.value)
    assert client.submit(total, np.arange(400_000, dtype="float64"), 1).result(PATIENCE_S) == 1.0


def test_an_object_ref_is_no_result_and_no_global(client: Client) -> None:
    ref = client.put([1, 2, 3])
    with pytest.raises(CannotPack, match="only as an argument"):
        client.submit(lambda: ref)
    with pytest.raises(BlobMissing):
        client.fetch(Ref("0" * 64, 1))


def test_on_one_machine_blobs_are_linked_not_sent(system: System, client: Client) -> None:
    array = np.random.default_rng(2).random(300_000)
    names = {path.name for path in stored(system.data)}
    assert np.array_equal(client.submit(lambda a: a * 2, array).result(PATIENCE_S), array * 2)
    new = [path for path in stored(system.data) if path.name not in names]
    assert len(new) == 2  # the argument and the result
    assert [path.stat().st_nlink for path in new] == [2, 2]


def test_an_endpoint_that_cannot_link_is_sent_the_blobs(stopped: System) -> None:
    stopped.up("--no-endpoint")
    place = ("other", "--dir", str(stopped.folder / "other"))
    stopped.oncue("endpoint", "register", *place, "--workers", "1")
    stopped.oncue("endpoint", "start", *place, "--detach")
    stopped.await_connected("other")
    with stopped.client() as client:
        array = np.random.default_rng(3).random(300_000)
        found = client.submit(lambda a: a * 2, array, endpoint="other").result(PATIENCE_S)
        assert np.array_equal(found, array * 2)
        assert {path.stat().st_nlink for path in stored(stopped.data)} == {1}
    stopped.oncue("endpoint", "stop", *place)
