"""Keys and encrypted sockets, over real TCP on loopback."""

from __future__ import annotations

import select
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from oncue import curve
from oncue.errors import Conflict, Invalid


class Server:
    """A ROUTER behind a gate, turned by hand."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.keys = curve.make_keys()
        self.gate = curve.Gate(self.context)
        self.socket = curve.router(self.context, self.keys)
        self.door = curve.bind(self.socket, "127.0.0.1", 0)
        self.port = self.door.port

    def receive(self, timeout_s: float = 5.0, until_refused: int = 1 << 30) -> list[zmq.Frame] | None:
        """The next message; None when the time is over, or so many keys were refused."""
        for _ in range(int(timeout_s * 100)):
            self.gate.on_readable()
            try:
                return self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                pass
            if self.gate.refused >= until_refused:
                return None
            select.select([self.gate.fileno(), self.socket.getsockopt(zmq.FD)], [], [], 0.01)
        return None

    def close(self) -> None:
        self.socket.close(0)
        self.door.close()
        self.gate.close()
        self.context.destroy(0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(0)


def dial(context: zmq.Context[zmq.Socket[bytes]], server: Server, keys: curve.Keys) -> zmq.Socket[bytes]:
    socket = curve.dealer(context, server.keys.public, keys)
    socket.connect(curve.address("127.0.0.1", server.port))
    return socket


def test_a_known_key_gets_in_under_its_endpoints_name(server: Server, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    keys = curve.make_keys()
    server.gate.allow(keys.public, "ep_1")
    socket = dial(context, server, keys)
    socket.send(b"hello")
    message = server.receive()
    assert message is not None
    assert message[-1].bytes == b"hello"
    assert message[-1].get("User-Id") == "ep_1"
    server.socket.send_multipart([message[0].bytes, b"back"])
    assert socket.poll(5_000)
    assert socket.recv() == b"back"
    socket.close(0)


def test_an_unknown_key_is_refused_before_any_message_is_read(
    server: Server, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    socket = dial(context, server, curve.make_keys())
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    socket.send(b"let me in")
    assert server.receive(until_refused=1) is None
    assert server.gate.refused == 1
    assert monitor.poll(5_000), "the agent is told that its key was refused"
    assert int(recv_monitor_message(monitor)["value"]) == curve.UNKNOWN
    with pytest.raises(zmq.Again):
        server.socket.recv_multipart(zmq.NOBLOCK)
    socket.disable_monitor()
    monitor.close(0)
    socket.close(0)


def test_a_forbidden_key_cannot_dial_again(server: Server, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    keys = curve.make_keys()
    server.gate.allow(keys.public, "ep_1")
    first = dial(context, server, keys)
    first.send(b"1")
    assert server.receive() is not None
    server.gate.forbid(keys.public)
    first.close(0)
    again = dial(context, server, keys)
    monitor = again.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    again.send(b"2")
    assert server.receive(until_refused=1) is None
    assert server.gate.refused == 1
    assert monitor.poll(5_000)
    assert int(recv_monitor_message(monitor)["value"]) == curve.REVOKED  # not only that it is unknown
    again.disable_monitor()
    monitor.close(0)
    again.close(0)
    # The server's word is the newest: a key that is allowed again gets in.
    server.gate.allow(keys.public, "ep_1")
    back = dial(context, server, keys)
    back.send(b"3")
    assert server.receive() is not None
    back.close(0)


def test_no_other_mechanism_gets_in(server: Server, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    plain = context.socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(curve.address("127.0.0.1", server.port))
    plain.send(b"no encryption")
    assert server.receive(timeout_s=0.5) is None
    plain.close(0)


def test_keys_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "agent.key"
    keys = curve.load_or_make_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert curve.load_or_make_keys(path) == keys
    path.chmod(0o644)
    assert curve.load_or_make_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.secret.decode() not in repr(keys)
    assert [p.name for p in path.parent.iterdir()] == ["agent.key"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"public": "x", "secret": "y"}', "\udcff"])
def test_a_damaged_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.key"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Invalid, match=r"agent\.key"):
        curve.load_or_make_keys(path)


def test_a_taken_port_and_a_foreign_host_are_named(server: Server) -> None:
    other = curve.router(server.context, curve.make_keys())
    with pytest.raises(Conflict, match=str(server.port)):
        curve.bind(other, "127.0.0.1", server.port)
    with pytest.raises(Invalid):
        curve.bind(other, "203.0.113.7", 0)
    other.close(0)


def test_bad_keys_are_named(context: zmq.Context[zmq.Socket[bytes]], server: Server) -> None:
    with pytest.raises(Invalid):
        curve.dealer(context, b"short", curve.make_keys())
    with pytest.raises(Invalid):
        server.gate.allow(b"short", "ep_1")
