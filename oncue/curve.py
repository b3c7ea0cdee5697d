"""CURVE keys, encrypted ZeroMQ sockets, and authentication of agents.

CURVE is RFC 26 of ZeroMQ, ZAP is RFC 27.

    agent's DEALER ──CURVE handshake──► bridge's ROUTER ──ZAP, inproc──► Gate
                                      200 + endpoint id, or 400 ◄─────────┘

An unknown key is refused in the handshake, before any message is read. libzmq cannot close the
connection of one peer of a ROUTER. So after a key is revoked, the bridge must also drop messages
with its user id. The gate is a REP socket for `add_reader` of the event loop; the authenticators in
`zmq.auth` need a thread or zmq.asyncio sockets.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from oncue.disk.durable_files import sync_new
from oncue.errors import Conflict, Invalid, OncueError
from oncue.processes.descriptors import GuardedListener

ZAP = "inproc://zeromq.zap.01"  # RFC 27 fixes the name
# Messages of one peer. A task frame has at most some MB, and credit limits their number.
HWM = 20_000
MAX_MESSAGE_BYTES = 96 << 20  # a larger part closes the connection
# Of an agent to the server: its largest is a frame of results, 4 MB, or one result of an older
# version. Few are read ahead; the rest waits at the agent.
AGENT_MESSAGE_BYTES, AGENT_HWM = 32 << 20, 256
TO_AGENT_HWM = 10_000
# ZMTP pings detect dead TCP connections; bridge.Heartbeat detects peers that hang.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 4_000, 12_000


class Keys(msgspec.Struct, frozen=True):
    """A CURVE key pair, each 40 characters of Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:  # keeps the secret out of logs
        return f"Keys({self.public.decode()})"


def make_keys() -> Keys:
    return Keys(*zmq.curve_keypair())


def load_or_make_keys(path: Path) -> Keys:
    """Return the key pair in this file; create it if there is none.

    The file is JSON with mode 600. Two processes that create it at once get the same pair. Raises
    Invalid if the file cannot be read or has no key pair.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    keys = make_keys()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # with mode 600
    try:
        with os.fdopen(handle, "w") as f:
            json.dump({"public": keys.public.decode(), "secret": keys.secret.decode()}, f)
            f.flush()
            os.fsync(f.fileno())
        os.link(fresh, path)  # fails if the file exists; rename would overwrite it
        sync_new(path)  # a server that knows this key must not outlive it
    except FileExistsError:
        return _load(path)
    finally:
        os.unlink(fresh)
    return keys


def _load(path: Path) -> Keys:
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            path.chmod(0o600)
        found = json.loads(path.read_text())
        keys = Keys(found["public"].encode(), found["secret"].encode())
        if zmq.curve_public(keys.secret) != keys.public:
            raise ValueError("the two keys are not a pair")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zmq.ZMQError) as e:
        raise Invalid(
            f"{path} is not a key file: {e}", remedy="put the right file back, or remove it and register again"
        ) from None
    return keys


# ---------------------------------------------------------------- sockets


def dealer(context: zmq.Context[zmq.Socket[bytes]], server_key: bytes, keys: Keys) -> zmq.Socket[bytes]:
    """Return an agent's socket, not yet connected.

    Raises Invalid for a malformed server key.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    _common(socket)
    # Each connection of a session is a new socket; libzmq's own reconnects must not go unnoticed.
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    try:
        socket.curve_serverkey = server_key
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    except (zmq.ZMQError, TypeError, ValueError) as e:
        socket.close(0)
        raise Invalid(f"not a CURVE key: {e}", remedy="register the endpoint again: oncue endpoint register") from None
    return socket


def router(context: zmq.Context[zmq.Socket[bytes]], keys: Keys) -> zmq.Socket[bytes]:
    """Return the bridge's socket, not yet bound.

    Its context must have a Gate already: without one all connections are refused.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    _common(socket)
    # With 1, another valid key could take over a peer's tasks.
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a disconnected peer raises
    socket.setsockopt(zmq.MAXMSGSIZE, AGENT_MESSAGE_BYTES)
    socket.setsockopt(zmq.RCVHWM, AGENT_HWM)
    socket.setsockopt(zmq.SNDHWM, TO_AGENT_HWM)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)  # until then, anybody may hold a descriptor
    socket.setsockopt(zmq.ZAP_DOMAIN, b"oncue")
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    return socket


def _common(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HWM)
    socket.setsockopt(zmq.RCVHWM, HWM)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)


def address(host: str, port: int | str) -> str:
    """Return tcp://host:port, with brackets around an IPv6 address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def connect(socket: zmq.Socket[bytes], where: str) -> None:
    """Connect to tcp://host:port. Raises Invalid for a malformed address."""
    try:
        socket.connect(where)
    except zmq.ZMQError as e:
        raise Invalid(f"cannot connect to {where!r}: {e.strerror}", remedy="an address is tcp://host:port") from None


def bind(socket: zmq.Socket[bytes], host: str, port: int) -> GuardedListener:
    """Bind the socket; return its listener, which somebody must watch.

    Port 0 takes any free port. Raises Conflict if the port is taken, Invalid if the host is not an
    address of this machine.
    """
    name = "127.0.0.1" if host == "localhost" else host or "0.0.0.0"
    try:
        listener = GuardedListener(name, port)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is taken",
                remedy="stop the program that listens there, or give another --bridge-port",
            ) from None
        raise Invalid(
            f"cannot listen on {host}:{port}: {e.strerror}", remedy="give an address of this machine"
        ) from None
    socket.setsockopt(zmq.USE_FD, listener.duplicate())
    socket.bind(address(name, listener.port))
    return listener


# ---------------------------------------------------------------- authentication


# ZAP status of a failed handshake. ZAP has none for a revoked key, so that gets the status of an
# "internal error", which this module does not use otherwise.
UNKNOWN, REVOKED = 400, 500


class Gate:
    """ZAP handler: authenticates public keys. One per context.

    Watch `fileno()` in the event loop and call `on_readable()`.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], on_refused: Callable[[str, str], None] | None = None
    ) -> None:
        """`on_refused(address, reason)` is called for each refused handshake."""
        self._on_refused = on_refused
        self._known: dict[bytes, bytes] = {}  # raw public key -> user id
        self._forbidden: set[bytes] = set()
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(ZAP)
        except zmq.ZMQError as e:
            self._socket.close(0)
            raise OncueError(f"two gates in one context: {e.strerror}") from None
        self.refused = 0  # handshakes with unknown keys

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def allow(self, public_key: bytes, user: str) -> None:
        """Let this key (Z85) connect; its messages carry `user` as User-Id.

        Raises Invalid.
        """
        key = raw_key(public_key)
        self._known[key] = user.encode()
        self._forbidden.discard(key)

    def forbid(self, public_key: bytes) -> None:
        """Refuse new connections of this key as revoked.

        An existing connection stays open: drop messages with its user id.
        """
        key = raw_key(public_key)
        self._known.pop(key, None)
        self._forbidden.add(key)

    def on_readable(self, most: int = 0) -> bool:
        """Answer pending requests, at most `most` (0: all).

        Return True if there may be more: the file descriptor is edge-triggered, so call it again.
        """
        answered = 0
        while not most or answered < most:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._socket.send_multipart(self._answer(request))
            answered += 1
        return True

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number = request[0], request[1] if len(request) > 1 else b""
        user = None
        if version == b"1.0" and len(request) == 7 and request[5] == b"CURVE":
            user = self._known.get(request[6])
        if user is None:
            self.refused += 1
            revoked = bool(request[6:]) and request[6] in self._forbidden
            status, why = (REVOKED, "revoked key") if revoked else (UNKNOWN, "unknown key")
            if self._on_refused is not None:
                address = request[3].decode(errors="replace") if len(request) > 3 else "?"
                self._on_refused(address, f"an {why}" if not revoked else f"a {why}")
            return [b"1.0", number, b"%d" % status, why.encode(), b"", b""]
        return [b"1.0", number, b"200", b"OK", user, b""]

    def close(self) -> None:
        self._socket.close(0)


def raw_key(public_key: bytes) -> bytes:
    """Return the 32 bytes of a Z85 key. Raises Invalid."""
    try:
        raw = z85.decode(public_key)
    except Exception as e:  # KeyError, ValueError or struct.error, depending on the fault
        raise Invalid(f"not a CURVE public key: {e}", remedy="a key is 40 characters of Z85") from None
    if len(raw) != 32:
        what = f"not a CURVE public key: {len(public_key)} characters instead of 40"
        raise Invalid(what, remedy="a key is 40 characters of Z85")
    return raw
