"""Connections that are held open: whoever has a token gets in meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncue.dispatcher.http.connection import HEAD_S
from oncue.dispatcher.http.rate_limit import REFUSED_PER_S
from tests.e2e.running import System, system_in
from tests.security.raw_http import connect, head, is_closed, many, read_all, status
from tests.security.stall import check_no_stall

MIB = 1 << 20
TIMEOUT_S = 8.0
UNFINISHED = {
    "nothing": b"",
    "half a head": b"GET /v1/me HTTP/1.1\r\nHost: a\r\nX: ",
    "half a body": head("POST", "/hooks/none", 1000) + b"half",
    "half a chunked body": head("POST", "/hooks/none", Transfer_Encoding="chunked") + b"1\r\nx\r\n",
    "a refused body": head("POST", "/v1/tasks", 1000) + b"half",
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a server whose peers may pause for TIMEOUT_S only."""
    folder = tmp_path_factory.mktemp("impatient")
    with system_in(folder, "--no-endpoint", ONCUE_HTTP_TIMEOUT_S=str(TIMEOUT_S)) as system:
        yield system


def test_unfinished_requests_are_ended_and_a_known_caller_is_served(served: System) -> None:
    url = served.local["url"]
    files = served.server.num_fds()

    def attack() -> None:
        with contextlib.ExitStack() as stack:
            peers = [p for sent in UNFINISHED.values() for p in stack.enter_context(many(url, 300, sent))]
            assert served.http("GET", "/v1/me").status == 200
            assert served.server.num_fds() < files + 600
            served.await_true(lambda: all(is_closed(p) for p in peers), "all are closed", 3 * HEAD_S)

    check_no_stall(url, attack)
    assert served.http("GET", "/v1/me").status == 200
    served.await_true(lambda: served.server.num_fds() < files + 20, "descriptors are released", 10)


def test_a_head_that_comes_byte_by_byte_is_ended(served: System) -> None:
    with connect(served.local["url"]) as peer:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 3 * HEAD_S and not is_closed(peer):
                peer.settimeout(60)
                peer.sendall(b"X")
                threading.Event().wait(0.2)
        assert time.monotonic() < began + 2 * HEAD_S + 5


def test_a_body_that_comes_byte_by_byte_is_told_so(impatient: System) -> None:
    with connect(impatient.local["url"]) as peer:
        peer.sendall(head("POST", "/v1/events", 10_000, Authorization=f"Bearer {impatient.local['token']}"))
        answer = b""
        peer.settimeout(0.2)
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while not answer and time.monotonic() < deadline:
            peer.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = peer.recv(1 << 16)
        peer.settimeout(30)
        answer += read_all(peer)
    assert status(answer) == 408, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request-timeout"


def test_a_slow_upload_that_goes_on_is_taken(impatient: System) -> None:
    content = os.urandom(60_000)
    name = hashlib.sha256(content).hexdigest()
    with connect(impatient.local["url"]) as peer:
        peer.sendall(head("PUT", f"/v1/blobs/{name}", len(content), Authorization=f"Bearer {impatient.local['token']}"))
        for at in range(0, len(content), 1000):  # 5 kB/s, for longer than anybody's patience
            peer.sendall(content[at : at + 1000])
            threading.Event().wait((TIMEOUT_S + 5) / 60)
        assert status(read_all(peer)) == 201


@pytest.fixture(scope="module")
def large(impatient: System) -> str:
    """Return the path of a blob of 64 MB."""
    content = os.urandom(MIB) * 64
    name = hashlib.sha256(content).hexdigest()
    assert impatient.http("PUT", f"/v1/blobs/{name}", content).status == 201
    return f"/v1/blobs/{name}"


@pytest.mark.parametrize("path", ["a blob", "/openapi.json"])
def test_a_reader_that_takes_almost_nothing_is_cut(impatient: System, large: str, path: str) -> None:
    request = head("GET", large if path == "a blob" else path, Authorization=f"Bearer {impatient.local['token']}")
    if path != "a blob":
        request = request.replace(b"Connection: close\r\n", b"") * 30
    before = impatient.metric('oncue_http_connections_ended_total{reason="answer"}', may_be_absent=True)
    with connect(impatient.local["url"], 4_096) as peer:
        for _ in range(1 if path == "a blob" else 20):
            with contextlib.suppress(OSError):
                peer.setblocking(False)
                peer.sendall(request)
        peer.setblocking(True)
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while impatient.metric('oncue_http_connections_ended_total{reason="answer"}', may_be_absent=True) == before:
            assert time.monotonic() < deadline
            peer.recv(1)
            threading.Event().wait(1)


def test_a_reader_that_pauses_gets_all(impatient: System, large: str) -> None:
    with connect(impatient.local["url"]) as peer:
        peer.sendall(head("GET", large, Authorization=f"Bearer {impatient.local['token']}"))
        first = peer.recv(1 << 16)
        threading.Event().wait(TIMEOUT_S / 2)
        assert len(first + read_all(peer)) > 64 * MIB


def test_few_descriptors_are_kept_for_known_callers(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    system = System(tmp_path)
    script = 'ulimit -n 256; exec "$0" -m oncue up --detach --port 0 --no-endpoint'
    try:
        done = subprocess.run(["bash", "-c", script, sys.executable], env=system.env, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        system.note()
        url = system.local["url"]
        with many(url, 600, b"GET / HTTP/1.1\r\n"):
            for _ in range(5):
                assert system.http("GET", "/v1/me").status == 200
            event = system.http("POST", "/v1/events", {"type": "a", "source": "/b"})
            assert event.status == 202
        assert "Too many open files" not in system.said()
    finally:
        system.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_busy_address_does_not_refuse_a_new_hook(tmp_path: Path) -> None:
    """Connections without a token are replaced, the one that waits longest first."""
    with system_in(tmp_path, "--workers", "1", ONCUE_CONNECTIONS_PER_ADDRESS="8") as system:
        with many(system.local["url"], 50, UNFINISHED["half a body"]):
            answer = system.http("POST", "/hooks/none", b"x", token=None)
            assert answer.status == 404
        assert system.metric('oncue_http_connections_ended_total{reason="replaced"}', may_be_absent=True) >= 40


def test_refusals_without_a_token_are_slowed_down(served: System) -> None:
    url, token = served.local["url"], served.local["token"]
    request = head("GET", "/v1/me", Authorization="Bearer oncue_wrong").replace(b"Connection: close\r\n", b"")
    statuses: list[int] = []

    def ask() -> None:
        with connect(url) as peer:
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                peer.sendall(request)
                statuses.append(status(peer.recv(1 << 16)))

    def attack() -> None:
        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            assert served.http("GET", "/v1/me", token=token).status == 200
            thread.join()

    check_no_stall(url, attack)

    assert set(statuses) == {401}
    # A burst, the rate, and then each connection once a second; three tries of check_no_stall.
    assert len(statuses) <= 3 * (2 * REFUSED_PER_S + 8 * REFUSED_PER_S + 8 * 30)
