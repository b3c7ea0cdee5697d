"""What a task can read of the processes of its agent and server: nothing.

Root may read everything. So the system runs without privileges, also where root runs the tests.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.running import System

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and ptrace are Linux's: run it there")
SECRET = "geheim-7c1d"

SPY = """
import ctypes, os

def spy(pids):
    found = {}
    for pid in pids:
        for name in ("environ", "mem", "maps", "auxv", "fd/0"):
            path = f"/proc/{pid}/{name}"
            try:
                found[path] = repr(os.readlink(path) if name == "fd/0" else os.read(os.open(path, os.O_RDONLY), 9))
            except OSError as e:
                if e.errno == 5:  # opened, and nothing at that address
                    found[path] = "open"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, pid, None, None) == 0:
            found[f"ptrace {pid}"] = "attached"
            os.waitpid(pid, 0)
            libc.ptrace(17, pid, None, None)
    return found

def environment():
    parent = f"/proc/{os.getppid()}/cmdline"
    return [*map(str, os.environ.items()), open("/proc/self/environ").read(), open(parent).read()]

def descriptors():
    mine = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(f) for f in mine if os.path.lexists(f))
"""


def without_privileges() -> None:
    """Drop all capabilities: called in the child, before exec."""
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path)
    secrets = {"ONCUE_SECRET_HOOK": SECRET, "ONCUE_TOKEN": SECRET, "MY_API_KEY": SECRET}
    with subprocess.Popen(
        [sys.executable, "-m", "oncue", "up", "--port", "0", "--workers", "1"],
        env=system.env | secrets,
        cwd=tmp_path,
        preexec_fn=without_privileges,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            system.await_true((system.data / "local.json").exists, "the server is up")
            system.await_connected()
            system.write("spy.py", SPY)
            yield system
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def call(system: System, function: str, **arguments: Any) -> Any:
    given = [word for name, value in arguments.items() for word in ("--arg", f"{name}:={json.dumps(value)}")]
    return json.loads(system.oncue("invoke", f"spy.py:{function}", *given).stdout)


def is_connected(system: System, name: str, pid: int) -> bool:
    """Return True if this process is the endpoint's agent, and connected."""
    try:
        status = json.loads((system.data / "endpoints" / name / "status.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(status["pid"] == pid and status["state"] == "connected")


def test_a_task_sees_nothing_of_agent_and_server(system: System) -> None:
    agent = system.agent_and_workers()[0]
    with subprocess.Popen(["sleep", "100"], preexec_fn=without_privileges) as other:
        try:
            found = call(system, "spy", pids=[agent.pid, system.server.pid, other.pid])
        finally:
            other.kill()
    assert f"/proc/{other.pid}/environ" in found, "the attack works on a process that is not closed"
    assert [name for name in found if str(other.pid) not in name] == []


def test_a_task_has_no_secret_in_its_environment_and_no_descriptor_of_the_agent(system: System) -> None:
    assert SECRET not in str(call(system, "environment"))
    found = call(system, "descriptors")
    own = ("pipe:", "/memfd:", "/dev/null", "/proc/")
    assert [name for name in found if not name.startswith(own)] == []
    assert len([name for name in found if name.startswith("pipe:")]) == 2
    assert not any("oncue-board" in name for name in found), "the shared memory has no descriptor"


def test_no_secret_is_in_the_environment_that_an_agent_was_started_with(system: System) -> None:
    """Also if it is started by hand, or by a unit, with a token in its environment."""
    system.oncue("endpoint", "register", "byhand", "--workers", "1")
    for words in (
        ["-m", "oncue", "endpoint", "start", "byhand"],
        ["-m", "oncue.endpoint.run", "--dir", str(system.data / "endpoints" / "byhand")],
    ):
        env = system.env | {"ONCUE_TOKEN": SECRET, "ONCUE_SECRET_X": SECRET}
        with subprocess.Popen([sys.executable, *words], env=env, stderr=subprocess.DEVNULL) as agent:
            try:
                system.await_true(lambda pid=agent.pid: is_connected(system, "byhand", pid), "it is connected")
                if os.getuid() == 0:  # who else may not read it, which is tested above
                    assert SECRET not in str(psutil.Process(agent.pid).environ())
            finally:
                agent.send_signal(signal.SIGTERM)
                assert agent.wait(60) == 0


def test_a_debuggable_agent_is_open(system: System) -> None:
    path = system.data / "endpoints" / "local" / "agent.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"debuggable": True}))
    agent = system.agent_and_workers()[0]
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)
    system.await_true(lambda: system.agent_and_workers()[0].pid != agent.pid, "it is started again")
    system.await_connected()
    pid = system.agent_and_workers()[0].pid
    assert f"/proc/{pid}/environ" in call(system, "spy", pids=[pid])
