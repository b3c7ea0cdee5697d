"""Start and stop: no process is left over, and accepted tasks survive."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

import psutil
import pytest

from tests.e2e.running import PATIENCE_S, System, signalled


def up_here(system: System) -> subprocess.Popen[str]:
    """Run `oncue up` in the foreground until its endpoint is connected."""
    process = system.start("up", "--port", "0", "--workers", "1")
    system.await_true(lambda: system.local["pid"] == process.pid, "local.json")
    system.await_connected()
    system.note()
    return process


def test_up_down_and_up_again_keeps_everything(stopped: System) -> None:
    stopped.up("--workers", "1")
    with stopped.client() as client:
        first = client.submit(pow, 6, 7)
        assert first.result(PATIENCE_S) == 6**7
    again = stopped.oncue("up", "--port", "0", code=1)
    assert "runs already" in again.stderr
    assert "oncue down" in again.stderr
    parts = stopped.agent_and_workers()
    assert len(parts) >= 2  # the agent, and a worker
    before = stopped.tasks()
    stopped.down()
    assert stopped.left() == []
    stopped.up("--workers", "1")
    assert stopped.tasks() == before
    with stopped.client() as client:
        assert client.task(first.id).result(PATIENCE_S) == 6**7
        assert client.submit(pow, 2, 3).result(PATIENCE_S) == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_the_agent_and_the_workers(stopped: System, number: signal.Signals) -> None:
    process = up_here(stopped)
    parts = stopped.agent_and_workers()
    out, err = signalled(process, number)
    assert process.returncode == 0, err
    assert "oncue is up at" in out
    assert "Traceback" not in err
    assert parts
    assert stopped.left() == []


def test_a_port_in_use_is_named(stopped: System) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = stopped.oncue("up", "--port", str(port), "--no-endpoint", code=1)
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (stopped.data / "log").exists()  # it has begun nothing


def test_an_address_of_another_machine_is_refused(stopped: System) -> None:
    for host in ("10.99.99.99", "nosuch.invalid"):
        done = stopped.oncue("up", "--host", host, "--port", "0", "--no-endpoint", code=2)
        assert f"cannot listen on {host}" in done.stderr
        assert "Unclosed" not in done.stderr


def ipv6_here() -> bool:
    with socket.socket(socket.AF_INET6) as s, contextlib.suppress(OSError):
        s.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not ipv6_here(), reason="this machine has no ::1: enable IPv6 on its loopback")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_on_ipv6(stopped: System, host: str) -> None:
    stopped.up("--workers", "1", "--host", host)
    assert stopped.local["url"].startswith("http://[::1]:")
    with stopped.client() as client:
        assert client.submit(pow, 2, 5).result(PATIENCE_S) == 32
    stopped.oncue("endpoint", "register", "other")  # gets the address of the server
    stopped.oncue("endpoint", "start", "other", "--detach")
    try:
        stopped.await_connected("other")
    finally:
        stopped.oncue("endpoint", "stop", "other")


def test_an_invalid_name_of_the_local_endpoint_is_reported(stopped: System) -> None:
    stopped.up("--no-endpoint")
    stopped.oncue("endpoint", "register", "mine")  # with a key of its own
    stopped.down()
    done = stopped.oncue("up", "--detach", "--port", "0", "--endpoint-name", "mine")
    assert "its endpoint is not registered" in done.stderr
    assert "there is an endpoint 'mine' with another key" in done.stderr


def test_a_detached_start_that_fails_says_why(stopped: System) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = stopped.oncue("up", "--detach", "--port", str(taken.getsockname()[1]), code=1)
    assert str(taken) not in done.stderr
    assert "in use" in done.stderr
    assert "server.log" in done.stderr


def test_a_restarted_server_reuses_the_running_agent(stopped: System) -> None:
    stopped.up("--workers", "1")
    agent = next(p for p in stopped.agent_and_workers() if "oncue.endpoint.run" in " ".join(p.cmdline()))
    os.kill(stopped.server.pid, signal.SIGKILL)
    stopped.up("--workers", "1")
    stopped.await_connected()
    assert agent.is_running()
    with stopped.client() as client:
        assert client.submit(pow, 2, 5).result(PATIENCE_S) == 32
    stopped.down()
    assert not psutil.pid_exists(agent.pid) or agent.status() == psutil.STATUS_ZOMBIE
    assert stopped.left() == []


def test_a_killed_server_whose_agent_is_ending_gets_a_new_one(stopped: System) -> None:
    stopped.up("--workers", "1")
    agent = next(p for p in stopped.agent_and_workers() if "oncue.endpoint.run" in " ".join(p.cmdline()))
    os.kill(stopped.server.pid, signal.SIGKILL)
    agent.terminate()  # it is still ending while the next server starts
    stopped.up("--workers", "1")
    with stopped.client() as client:
        assert client.submit(pow, 2, 6).result(PATIENCE_S) == 64
    stopped.await_connected()
    assert agent not in stopped.note()


def test_two_servers_cannot_have_one_data_folder(stopped: System) -> None:
    """The second server exits even if the first has not opened its port yet."""
    stopped.up("--no-endpoint")
    (stopped.data / "local.json").rename(stopped.data / "hidden.json")
    try:
        done = stopped.oncue("up", "--port", "0", "--no-endpoint", code=1)
    finally:
        (stopped.data / "hidden.json").replace(stopped.data / "local.json")
    assert "Traceback" not in done.stderr
    assert "→" in done.stderr
