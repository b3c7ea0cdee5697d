"""Listening sockets that leave a process some descriptors."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
from collections.abc import Iterator

import pytest

from oncue.processes import descriptors
from oncue.processes.descriptors import LEAST_SPARE, GuardedListener


@pytest.fixture
def limit() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 4 * LEAST_SPARE + 400
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def listener() -> Iterator[GuardedListener]:
    listener = GuardedListener("127.0.0.1", 0)
    yield listener
    listener.close()


def dial(listener: GuardedListener, timeout_s: float) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), timeout_s)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops what would open a connection")
def test_it_refuses_while_few_descriptors_are_left(
    listener: GuardedListener, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as held:
        before = held.enter_context(dial(listener, 30))
        accepted, _ = listener._socket.accept()
        held.enter_context(accepted)
        assert not listener.watch()

        with contextlib.ExitStack() as files:
            for _ in range(limit - LEAST_SPARE):
                with contextlib.suppress(OSError):
                    files.enter_context(open(__file__))
            assert listener.watch(), "it refuses"
            assert not listener.watch(), "and says so once"
        with pytest.raises(OSError, match="timed out"):
            dial(listener, 0.3)
        before.sendall(b"open connections go on")
        accepted.settimeout(30)
        assert accepted.recv(100) == b"open connections go on"

        monkeypatch.setattr(descriptors.time, "monotonic", lambda: listener._accepts_at)
        assert not listener.watch()
        held.enter_context(dial(listener, 30))


def test_it_refuses_without_any_descriptor(listener: GuardedListener, limit: int) -> None:
    with contextlib.ExitStack() as files:
        with contextlib.suppress(OSError):
            while True:
                files.enter_context(open(__file__))
        assert listener.watch()
