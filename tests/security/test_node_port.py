"""Somebody without a key at the port where an agent's nodes dial."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import system_in

YAML = "provider: {kind: slurm}\nblocks: {max: 1, nodes: 1, walltime: 10m}\nnetwork: {address: 127.0.0.1}\n"
DESCRIPTORS = 128
FLOOD_S = 13.0  # the agent looks at its memory every 5 s


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_silent_connections_do_not_end_an_agent(tmp_path: Path) -> None:
    with system_in(tmp_path, "--no-endpoint") as system:
        folder = system.folder / "hpc"
        place = ("hpc", "--dir", str(folder))
        system.oncue("endpoint", "register", *place)
        (folder / "endpoint.yaml").write_text(YAML)
        system.oncue("endpoint", "start", *place, "--detach")
        system.await_connected("hpc")
        agent = psutil.Process(int((folder / "lock").read_text()))
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        where = json.loads((folder / "nodes.json").read_text())["addresses"][0]
        port = int(where.rpartition(":")[2])

        with contextlib.ExitStack() as held:
            deadline = time.monotonic() + FLOOD_S
            while time.monotonic() < deadline and is_alive(agent):
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_connection(("127.0.0.1", port), 0.2))
                    time.sleep(0.002)
        assert is_alive(agent), (folder / "agent.log").read_text()
        system.oncue("endpoint", "stop", *place)
