"""Addresses of Kafka clusters.

For example kafka://host:port,host:port?prefix=...&replication=3

User names, passwords and certificates are settings (kafka_*), not part of the URL: URLs end up in
shell histories.
"""

from __future__ import annotations

import asyncio
import difflib
import shlex
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from aiokafka.abc import AbstractTokenProvider

from oncue.config import Settings
from oncue.errors import Invalid, LogError

SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
RECORD_MB = 8
TOKEN_S = 30.0


class KafkaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in the URL's query."""

    # Prefix of topic, group and transactional ids: several installations can share a cluster.
    prefix: str = ""
    replication: int = -1  # of topics that oncue makes; -1: the cluster's default
    record_mb: int = RECORD_MB  # the largest record (and append to one partition)
    session_s: float = 6.0  # a server that is silent for so long loses its partitions to others


class Address(msgspec.Struct, frozen=True):
    """Parsed URL and settings of a cluster."""

    servers: tuple[str, ...]
    options: KafkaOptions
    client: dict[str, Any]  # arguments of aiokafka's clients

    @property
    def record_bytes(self) -> int:
        return self.options.record_mb * 1024 * 1024

    def __str__(self) -> str:
        return ",".join(self.servers)


def parse_address(rest: str, settings: Settings) -> Address:
    """Parse `rest`, the URL after kafka://. Raises Invalid."""
    places, _, query = rest.partition("?")
    servers = tuple(s.strip() for s in places.strip("/").split(",") if s.strip())
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise Invalid(f"kafka://{rest}: {server!r} is not host:port", remedy="kafka://broker1:9092,broker2:9092")
    if not servers:
        raise Invalid(f"kafka://{rest} names no broker", remedy="kafka://broker1:9092,broker2:9092")
    return Address(servers, _options(query), {"bootstrap_servers": list(servers), **_security(settings)})


def _options(query: str) -> KafkaOptions:
    found = dict(parse_qsl(query, keep_blank_values=True))
    for name in found:
        if name not in KafkaOptions.__struct_fields__:
            near = difflib.get_close_matches(name, KafkaOptions.__struct_fields__, n=1)
            known = f"known ones: {', '.join(KafkaOptions.__struct_fields__)}; names and passwords are settings, kafka_user ..."
            raise Invalid(
                f"the log's URL has an unknown option {name!r}", remedy=f"did you mean {near[0]!r}?" if near else known
            )
    try:
        options = msgspec.convert(found, KafkaOptions, strict=False)
    except msgspec.ValidationError as e:
        raise Invalid(f"the log's URL: {e}", remedy="kafka://host:9092?replication=3&record_mb=8") from None
    # A broker accepts requests up to 100 MB (socket.request.max.bytes).
    if not 1 <= options.record_mb <= 90:
        raise Invalid("record_mb is between 1 and 90", remedy="large payloads are blobs, and need no large records")
    return options


def _security(s: Settings) -> dict[str, Any]:
    tls = s.kafka_tls or bool(s.kafka_ca_file or s.kafka_cert_file)
    found: dict[str, Any] = {"ssl_context": _tls(s) if tls else None}
    mechanism = s.kafka_sasl.upper()
    if not mechanism:
        if s.kafka_user or s.kafka_token_file or s.kafka_token_command:
            raise Invalid("kafka_sasl is not set", remedy=f"name the mechanism, one of {', '.join(SASL)}")
        return found | {"security_protocol": "SSL" if tls else "PLAINTEXT"}
    if mechanism not in SASL:
        raise Invalid(f"kafka_sasl: {s.kafka_sasl!r} is not known", remedy=f"one of {', '.join(SASL)}")
    found |= {"security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT", "sasl_mechanism": mechanism}
    if mechanism == "OAUTHBEARER":
        if bool(s.kafka_token_file) == bool(s.kafka_token_command):
            raise Invalid(
                "OAUTHBEARER needs a token", remedy="set kafka_token_file or kafka_token_command, one of them"
            )
        return found | {"sasl_oauth_token_provider": Token(s.kafka_token_file, s.kafka_token_command)}
    password = s.kafka_password
    if s.kafka_password_file:
        password = _read(s.kafka_password_file, "kafka_password_file")
    if not s.kafka_user or not password:
        raise Invalid(f"{mechanism} needs a name and a password", remedy="set kafka_user and kafka_password_file")
    return found | {"sasl_plain_username": s.kafka_user, "sasl_plain_password": password}


def _tls(s: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=s.kafka_ca_file or None)
        if s.kafka_cert_file:
            context.load_cert_chain(s.kafka_cert_file, s.kafka_key_file or None)
    except (OSError, ssl.SSLError) as e:
        files = ", ".join(f for f in (s.kafka_ca_file, s.kafka_cert_file, s.kafka_key_file) if f)
        raise Invalid(
            f"the certificates for Kafka cannot be used: {e}", remedy=f"PEM files are needed: {files}"
        ) from None
    return context


def _read(file: str, setting: str) -> str:
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(f"{setting}: {e}", remedy="the file holds the value only, readable by the server only") from None


class Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """OAuth token from a file or command, read again for each new connection."""

    def __init__(self, file: str, command: str) -> None:
        self._file, self._command = file, command

    async def token(self) -> str:
        if self._file:
            return _read(self._file, "kafka_token_file")
        process = await asyncio.create_subprocess_exec(
            *shlex.split(self._command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), TOKEN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LogError(f"kafka_token_command gave no token in {TOKEN_S:.0f} s") from None
        if process.returncode or not out.strip():
            raise LogError(
                f"kafka_token_command ended with {process.returncode}: {err.decode(errors='replace')[-500:]}",
                remedy="the command prints the token and nothing else",
            )
        return out.decode().strip()
