"""Stopping servers and agents that hang, are stopped, or were killed; and going on after SIGCONT."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import System, has_ended

#: Python's handler of SIGTERM runs, as it does in a slow function, but the loop never learns of it.
HELD_BY_SIGUSR1 = """
import pathlib, signal, sys, time

def hold(*_):
    pathlib.Path({held!r}).touch()
    while True:
        time.sleep(1)

if "up" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, hold)
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HELD_BY_SIGUSR1.format(held=str(tmp_path / "held")))
    system = System(tmp_path, PYTHONPATH=str(site))
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
    """A loop that is held: SIGTERM is not handled."""
    server = system.server
    (agent, *_workers) = system.agent_and_workers()
    (system.data / "local.json").write_text("{")  # nothing depends on it
    server.send_signal(signal.SIGUSR1)
    system.await_true((system.folder / "held").exists, "the loop is held")

    refused = system.oncue("down", "--timeout", "1", code=1)
    assert f"pid {server.pid}" in refused.stderr
    assert "oncue down --force" in refused.stderr
    assert not has_ended(server)
    said = system.oncue("down", "--timeout", "1", "--force").stdout

    assert "did not answer and was killed" in said
    assert has_ended(server)
    assert has_ended(agent), "the agent of the killed server is stopped too"
    assert "no server runs" in system.oncue("down", code=4).stderr


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
