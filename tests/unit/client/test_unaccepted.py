"""Reports of tasks that the server did not accept."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oncue import errors
from oncue.client import Client, unaccepted
from tests.unit.client.client_server import Server, World, double, wait_until_unreachable


def test_flush_reports_unaccepted_tasks_and_they_are_still_sent(offline: tuple[Client, int]) -> None:
    client, port = offline
    tasks = [*client.map(double, range(5)), client.submit(double, 5)]
    wait_until_unreachable(client)
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


def test_close_reports_unaccepted_tasks(offline: tuple[Client, int]) -> None:
    client, _ = offline
    tasks = client.map(double, range(2))
    wait_until_unreachable(client)
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


def test_rejection_is_reported_once(client: Client, server: Server) -> None:
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


def test_old_rejections_are_only_counted(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unaccepted, "KEPT", 2)
    server.world.refuse = errors.DiskFull("the disk is full", remedy="make room")
    tasks = [client.submit(double, i, endpoint=f"e{i}") for i in range(5)]  # a batch each
    assert all(t.wait(10) for t in tasks[:-1])
    with pytest.raises(errors.DiskFull, match=f"^5 submitted tasks were not accepted: the disk is full .{tasks[0].id}"):
        client.flush()


PROGRAM = """
import sys
from tests.unit.client.client_server import World, serving
from tests.unit.client.client_server import double, packed
from oncue.client import Client
from oncue import functions
functions.pack_function = packed

with serving() as server:
    client = Client(server.url, "t", patience=20, linger=float(sys.argv[3]))
    client.submit(double, 1).result(10)
if sys.argv[1] == "away":
    print(client.submit(double, 2).id)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(("server", "code", "ends_with"), [("away", 0, 120), ("away", 3, 120), ("unused", 3, 3)])
def test_program_exit_reports_unaccepted_tasks(server: str, code: int, ends_with: int) -> None:
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


def test_interrupt_at_exit_reports_unaccepted_tasks() -> None:
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
