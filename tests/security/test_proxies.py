"""Outsiders behind a proxy that is trusted harm only themselves; nobody else's header is believed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.running import Answer, System, request, system_in
from tests.security.raw_http import exchange, head, is_closed, many, read_all, status
from tests.services import missing

Proxy = Callable[[Path, int, str], list[str | Path]]
CONNECTIONS = 16
ATTACKER, HONEST = "203.0.113.66", "203.0.113.7"
OPEN = "/"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield a server that trusts the proxies of this machine."""
    settings = {"ONCUE_TRUSTED_PROXIES": "127.0.0.1,::1", "ONCUE_CONNECTIONS_PER_ADDRESS": str(CONNECTIONS)}
    with system_in(tmp_path_factory.mktemp("behind"), "--no-endpoint", **settings) as system:
        yield system


def statuses(url: str, forwarded_for: str, source: str = "") -> set[int]:
    """Send requests until one is refused; "{}" in the header is the number of the request.

    They are sent many at once, so that a slow machine too exceeds the rate.
    """
    found: set[int] = set()
    for _ in range(20):
        heads = [head("GET", OPEN, X_Forwarded_For=forwarded_for.format(n % 250)) for n in range(500)]
        kept_open = b"".join(heads[:-1]).replace(b"Connection: close\r\n", b"")
        found |= {
            int(code) for code in re.findall(rb"HTTP/1\.1 (\d\d\d) ", exchange(url, kept_open + heads[-1], source))
        }
        if 429 in found:
            break
    return found


def as_client(system: System, address: str, path: str = OPEN) -> Answer:
    return request(system.local["url"], "GET", path, headers={"X-Forwarded-For": address})


def test_a_header_of_somebody_who_is_no_trusted_proxy_is_not_believed(system: System) -> None:
    assert statuses(system.local["url"], "203.0.113.{}") == {200, 429}


def test_a_claim_left_of_the_clients_address_is_not_believed(behind: System) -> None:
    assert statuses(behind.local["url"], f"198.51.100.{{}}, {ATTACKER}") == {200, 429}


def test_each_client_behind_the_proxy_has_its_own_rate(behind: System) -> None:
    assert statuses(behind.local["url"], "203.0.113.67") == {200, 429}
    assert as_client(behind, HONEST).status == 200
    assert as_client(behind, "2001:db8::7").status == 200


def test_unfinished_requests_of_one_client_leave_room_for_others(behind: System) -> None:
    url = behind.local["url"]
    unfinished = head("POST", "/hooks/none", 1_000, X_Forwarded_For=ATTACKER) + b"half"
    with many(url, 4 * CONNECTIONS, unfinished) as peers:
        behind.await_true(
            lambda: sum(is_closed(p) for p in peers) >= 3 * CONNECTIONS, "only so many of one address are left"
        )
        with many(url, CONNECTIONS, head("POST", "/hooks/none", 1_000, X_Forwarded_For=HONEST) + b"half") as honest:
            for peer in honest:
                peer.settimeout(60)
                peer.sendall(b"x" * 996)
                assert status(read_all(peer)) == 404
        assert sum(not is_closed(p) for p in peers) <= CONNECTIONS


def test_idle_connections_of_the_proxy_are_not_counted(behind: System) -> None:
    """A proxy keeps many, and each carries requests of one client after another."""
    keep = f"GET {OPEN} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {HONEST}\r\n\r\n".encode()
    with many(behind.local["url"], 4 * CONNECTIONS, keep) as peers:
        for peer in peers:
            assert status(peer.recv(1 << 16)) == 200
        for peer in peers:
            peer.sendall(keep)
            peer.settimeout(60)
            assert status(peer.recv(1 << 16)) == 200


def test_a_connection_belongs_to_the_client_of_each_request(behind: System) -> None:
    """One with a token, then one without: what the second does is not counted for the token."""
    before = behind.metric('oncue_http_connections_ended_total{reason="replaced"}', may_be_absent=True)
    known = head("GET", "/v1/me", X_Forwarded_For=HONEST, Authorization=f"Bearer {behind.local['token']}")
    known = known.replace(b"Connection: close\r\n", b"")
    unfinished = head("POST", "/hooks/none", 1_000, X_Forwarded_For="203.0.113.68") + b"half"
    with many(behind.local["url"], 2 * CONNECTIONS, known) as peers:
        for peer in peers:
            assert status(peer.recv(1 << 16)) == 200
            peer.sendall(unfinished)
        behind.await_true(
            lambda: sum(is_closed(p) for p in peers) >= CONNECTIONS, "only so many of one address are left"
        )
    after = behind.metric('oncue_http_connections_ended_total{reason="replaced"}')
    assert after - before >= CONNECTIONS


@pytest.mark.parametrize("value", ["x" * 10_000, "1.2.3.4," * 1_000, "\xff\xfe", "[::1", ",,,,", "fe80::1%25%s"])
def test_any_header_is_answered(behind: System, value: str) -> None:
    sent = head("GET", OPEN, X_Forwarded_For="{}").replace(b"{}", value.encode("latin-1"))
    answer = exchange(behind.local["url"], sent)
    assert int(answer.split()[1]) == (400 if len(value) > 8_190 else 200), answer[:200]
    assert as_client(behind, HONEST).status == 200


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        missing(f"no {name}: install it with the system's packages (make services)")
    return found


def haproxy(folder: Path, port: int, upstream: str) -> list[str | Path]:
    """Return the command of HAProxy with the configuration in compose/, but with this port and server."""
    text = Path("compose/haproxy.cfg").read_text()
    defaults = text[text.index("defaults") : text.index("resolvers")]
    frontend = text[text.index("frontend") : text.index("backend servers\n    balance")]
    frontend = frontend.replace("bind 0.0.0.0:8765\n", f"bind 127.0.0.1:{port}\n")
    config = folder / "haproxy.cfg"
    config.write_text(f"{defaults}{frontend}backend servers\n    server one {upstream}\n")
    return [program("haproxy"), "-db", "-f", config]


def nginx(folder: Path, port: int, upstream: str) -> list[str | Path]:
    """Return the command of nginx with the configuration in the docs, but with this port and server."""
    text = Path("docs/operating.md").read_text().partition("```nginx\n")[2].partition("```")[0]
    text = text.replace("127.0.0.1:8765", upstream).replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    paths = [f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    config = folder / "nginx.conf"
    config.write_text(text.replace("http {", "\n".join(["http {", "access_log off;", *paths])))
    options = f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
    return [program("nginx"), "-p", folder, "-c", config, "-g", options]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a second loopback address: Linux only")
@pytest.mark.parametrize("proxy", [haproxy, nginx])
def test_a_real_proxy_names_the_client(behind: System, tmp_path: Path, proxy: Proxy) -> None:
    """The client, 127.0.0.2 here, is limited whatever it claims; another one is not."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = proxy(tmp_path, port, urlsplit(behind.local["url"]).netloc)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            behind.await_true(lambda: listens(port) or process.poll() is not None, "the proxy listens")
            assert statuses(url, "198.51.100.{}", "127.0.0.2") == {200, 429}
            assert request(url, "GET", OPEN).status == 200
        finally:
            process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) == 0
