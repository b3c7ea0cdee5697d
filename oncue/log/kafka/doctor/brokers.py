"""Checks of each broker: reachable, security settings, version."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from types import TracebackType

from aiokafka import errors as k
from aiokafka.conn import AIOKafkaConnection

from oncue.errors import OncueError
from oncue.log.finding import Finding
from oncue.log.kafka.address import Address
from oncue.log.kafka.requests import FEATURE, ClusterDescription, describe_cluster, levels, release

PATIENCE_S = 5.0
LISTENER = (
    "does this port want TLS (kafka_tls, kafka_ca_file), a certificate (kafka_cert_file) or a name (kafka_sasl), or none of "
    "these? The broker's `listeners` and `listener.security.protocol.map` say"
)
CONNECTION = k.KafkaConnectionError | ConnectionError | asyncio.IncompleteReadError


class Brokers:
    """Connections to all brokers, for the time of the examination."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._options = {n: v for n, v in address.client.items() if n != "bootstrap_servers"}
        self._conns: dict[tuple[str, int], AIOKafkaConnection] = {}
        self._nodes: dict[int, tuple[str, int]] = {}

    async def __aenter__(self) -> Brokers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*map(_closed, self._conns.values()))

    def any(self) -> AIOKafkaConnection | None:
        return next(iter(self._conns.values()), None)

    def node(self, number: int) -> AIOKafkaConnection | None:
        place = self._nodes.get(number)
        return self._conns.get(place) if place is not None else None

    async def given(self) -> list[Finding]:
        """Check the brokers in the log's URL."""
        places = [_place(server) for server in self._address.servers]
        return list(await asyncio.gather(*[self._reach(f"kafka {_text(p)}", p) for p in dict.fromkeys(places)]))

    async def advertised(self, there: ClusterDescription) -> list[Finding]:
        """Check all brokers of the cluster at their advertised addresses."""
        self._nodes = dict(there.brokers)
        new = {place: node for node, place in there.brokers.items() if place not in self._conns}
        checks = [self._reach(f"kafka broker {node} {_text(place)}", place) for place, node in new.items()]
        found = [_with_listener_hint(f, there) if not f.ok else f for f in await asyncio.gather(*checks)]
        count = len(there.brokers)
        text = f"{count} broker{'s' * (count > 1)} ({', '.join(map(str, sorted(there.brokers)))})"
        return [*found, Finding("kafka cluster", True, text)]

    async def _reach(self, check: str, place: tuple[str, int]) -> Finding:
        began = time.monotonic()
        conn = AIOKafkaConnection(*place, **self._options, client_id="oncue", request_timeout_ms=int(PATIENCE_S * 1000))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await conn.connect()
                # A broker that requires authentication closes the connection here.
                await describe_cluster(conn, [])
                known = await levels(conn)
        except Exception as e:
            await _closed(conn)
            return Finding(check, False, *trouble(e, place, self._address))
        self._conns[place] = conn
        took_ms = (time.monotonic() - began) * 1000
        version = f"Kafka {release(known.broker)}" if known.broker else "version unknown (before Kafka 3.3)"
        text = f"answers in {took_ms:.0f} ms, {version}"
        if 0 < known.cluster < known.broker:
            text += f", {FEATURE} is of {release(known.cluster)}"
        return Finding(check, True, text)


async def _closed(conn: AIOKafkaConnection) -> None:
    """Wait until a connection is closed; one never connected has no socket."""
    closing = conn.close()
    if closing is not None:
        await asyncio.wait([closing], timeout=0.2)


def _place(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _text(place: tuple[str, int]) -> str:
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _with_listener_hint(finding: Finding, there: ClusterDescription) -> Finding:
    hint = "; clients are sent to this address by the broker's advertised.listeners: it has to lead there from this machine"
    return Finding(finding.check, False, finding.found, finding.remedy + hint)


def trouble(error: Exception, place: tuple[str, int], address: Address) -> tuple[str, str]:
    """Return (problem, remedy) of a failed connection."""
    host, port = place
    if isinstance(error, OncueError):
        return error.message, error.remedy
    if isinstance(error, socket.gaierror):
        return f"the name {host!r} is not known: {error.strerror}", "correct the name in the log's URL, or the DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "kafka_ca_file has to name the CA that signed the broker's certificate"
        if "match" in error.verify_message.lower():
            remedy = (
                f"the broker's certificate has to name {host!r} (subjectAltName), or the URL the name that is in it"
            )
        return f"its certificate is not trusted: {error.verify_message}", remedy
    if isinstance(error, ssl.SSLError):
        remedy = f"port {port} may be one without TLS: take the TLS listener's port, or leave out kafka_tls and kafka_ca_file"
        return f"no TLS there: {error.reason or error}", remedy
    if isinstance(error, TimeoutError):
        remedy = f"a firewall between here and {host}? does the broker live? does port {port} want TLS (kafka_tls)?"
        return f"no answer in {PATIENCE_S:.0f} s", remedy
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on port {port}", "is the broker up, is the port right?"
    if isinstance(error, k.UnsupportedSaslMechanismError):
        return str(error), "set kafka_sasl to one of the broker's mechanisms"
    if isinstance(error, k.IllegalSaslStateError):
        return "it takes no SASL on this port", "leave out kafka_sasl, or take the port of the listener with SASL"
    if isinstance(error, k.AuthenticationFailedError | k.SaslAuthenticationFailed):
        who = address.client.get("sasl_plain_username")
        whom = f"the user {who!r}" if who else "the token"
        remedy = "check kafka_sasl, kafka_user and kafka_password_file (or the token): has the broker this user, so?"
        return f"it does not let {whom} in: {error}", remedy
    if isinstance(error, CONNECTION):
        return f"the broker closed the connection: {error or type(error).__name__}", LISTENER
    return f"{type(error).__name__}: {error}", "the broker's own log (server.log) may say more"
