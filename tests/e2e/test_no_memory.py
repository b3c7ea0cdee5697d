"""A server with too little memory (`ulimit -v`): it ends or refuses, and what it accepted is there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import re
import resource
import subprocess
import sys

import psutil
import pytest

from tests.e2e.conftest import System
from tests.e2e.running import PATIENCE_S

pytestmark = pytest.mark.embedded


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space (RLIMIT_AS)")
def test_what_a_server_accepted_survives_its_lack_of_memory(stopped: System) -> None:
    system = stopped
    system.up("--no-endpoint")
    virtual = system.server.memory_info().vms
    system.down()
    limit = virtual + (100 << 20)
    out = system.folder / "out"
    with out.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "oncue", "up", "--port", "0", "--no-endpoint"],
            env=system.env, cwd=system.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )  # fmt: skip
    accepted: list[int] = []

    def send(n: int) -> None:
        body = {"type": "a", "source": "/b", "id": str(n), "data": "x" * 900_000}
        with contextlib.suppress(OSError, http.client.HTTPException):
            if system.http("POST", "/v1/events", body).status == 202:
                accepted.append(n)

    try:
        system.await_true(lambda: process.poll() is not None or system.local["pid"] == process.pid, "it runs")
        with concurrent.futures.ThreadPoolExecutor(20) as threads:
            list(threads.map(send, range(150)))
        if process.poll() is not None:
            assert re.search("Fatal Python error|MemoryError|memory", out.read_text()), "it says why it ended"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait(PATIENCE_S)
    system.up("--no-endpoint")
    found = {int(item["event"]["id"]) for page in system.pages("/v1/events?limit=20") for item in page.json["items"]}
    assert set(accepted) <= found
    assert "WRONG stored log" not in system.oncue("doctor", code=None).stdout
