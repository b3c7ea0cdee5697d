"""Stopping servers and agents that hang, are stopped, or were killed; and going on after SIGCONT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import System, has_ended


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path)
    system.up("--workers", "1")
    yield system
    for process in [*system.note(), *system._seen.values()]:
        if process.is_running():
            process.kill()


def test_down_ends_a_server_that_is_stopped(system: System) -> None:
    server = system.server
    system.await_connected()
    system.note()
    server.suspend()
    said = system.oncue("down").stdout
    assert f"pid {server.pid}" in said
    assert "has stopped" in said
    assert has_ended(server)


def test_down_ends_a_server_whose_settings_have_become_wrong(system: System) -> None:
    server = system.server
    system.note()
    (system.data / "oncue.toml").write_text("no_such_setting = 1\n")

    assert "has stopped" in system.oncue("down").stdout

    assert has_ended(server)
    assert "no_such_setting" in system.oncue("down", code=2).stderr


def test_down_says_that_a_server_does_not_stop_and_force_kills_it(system: System) -> None:
    """A loop that is held: SIGTERM is not handled. Here by a debugger's stop of all threads."""
    server = system.server
    (agent, *_workers) = system.agent_and_workers()
    (system.data / "local.json").write_text("{")  # nothing depends on it
    with held(server):
        refused = system.oncue("down", "--timeout", "1", code=1)
        assert f"pid {server.pid}" in refused.stderr
        assert "oncue down --force" in refused.stderr
        assert not has_ended(server)
        said = system.oncue("down", "--timeout", "1", "--force").stdout
    assert "did not answer and was killed" in said
    assert has_ended(server)
    assert has_ended(agent), "the agent of the killed server is stopped too"
    assert "no server runs" in system.oncue("down", code=4).stderr


class held:
    """SIGSTOP again and again, so that SIGCONT does not help."""

    def __init__(self, process: psutil.Process) -> None:
        code = (
            "import os, sys, time, signal\n"
            "while True:\n"
            " try: os.kill(int(sys.argv[1]), signal.SIGSTOP)\n"
            " except OSError: break\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code, str(process.pid)])
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def test_down_after_a_kill_ends_the_agent_and_no_stranger(system: System) -> None:
    server = system.server
    (agent, *_workers) = system.agent_and_workers()
    server.kill()
    server.wait(10)
    with subprocess.Popen(["sleep", "100"]) as stranger:
        (system.data / "lock").write_text(str(stranger.pid))
        local = (system.data / "local.json").read_text().replace(str(server.pid), str(stranger.pid))
        (system.data / "local.json").write_text(local)
        said = system.oncue("down").stdout
        assert stranger.poll() is None
        stranger.kill()
    assert f"pid {agent.pid}" in said
    assert has_ended(agent)


def test_a_stopped_agent_is_ended_by_endpoint_stop(system: System) -> None:
    (agent, *_workers) = system.agent_and_workers()
    agent.suspend()
    assert "has stopped" in system.oncue("endpoint", "stop", "local").stdout
    assert has_ended(agent)


@pytest.mark.parametrize("who", ["server", "agent", "worker"])
def test_a_process_that_is_stopped_for_a_while_loses_nothing(system: System, who: str) -> None:
    system.write("f.py", "def f(x):\n    return x\n")
    processes = [system.server, *system.agent_and_workers()]
    process = processes[["server", "agent", "worker"].index(who)]
    process.suspend()
    begun = [system.start("invoke", "f.py:f", "--arg", f"x:={n}") for n in range(3)]
    time.sleep(2)  # the stop itself, as long as a debugger or a batch system may make it
    os.kill(process.pid, signal.SIGCONT)
    for n, call in enumerate(begun):
        out, err = call.communicate(timeout=90)
        assert call.returncode == 0, err
        assert str(n) in out
