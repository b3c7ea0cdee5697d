"""Who is the client of a request, also behind proxies; what an outsider writes into headers is not believed."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from oncue.config import Settings
from oncue.dispatcher.http.client_address import FORWARDED_BYTES, HOPS, TrustedProxies, block

PROXY = "10.0.0.1"
XFF = "X-Forwarded-For"


def client(
    *lines: str, header: Any = XFF, peer: str = PROXY, trusted: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8")
) -> str:
    """Return the client of a request from this peer with these header lines."""
    request: web.Request = make_mocked_request("GET", "/", CIMultiDict([(header, line) for line in lines]))
    proxies = TrustedProxies(Settings(trusted_proxies=trusted, forwarded_header=header))
    assert proxies.trusts(peer)
    return proxies.client(peer, request)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], PROXY),
        (["203.0.113.7"], "203.0.113.7"),
        (["9.9.9.9, 203.0.113.7"], "203.0.113.7"),
        (["9.9.9.9", "203.0.113.7"], "203.0.113.7"),  # haproxy adds a line
        (["9.9.9.9,203.0.113.7,10.0.0.2 , 10.3.4.5"], "203.0.113.7"),
        (["10.0.0.9, 10.0.0.2"], "10.0.0.9"),  # a client inside
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["2001:DB8:0::7, fd00::1"], "2001:db8::7"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["9.9.9.9, ::ffff:10.0.0.2"], "9.9.9.9"),
        (["fe80::1%eth0"], "fe80::1"),
    ],
)
def test_the_client_is_the_last_that_is_no_trusted_proxy(lines: list[str], expected: str) -> None:
    assert client(*lines) == expected


@pytest.mark.parametrize(
    "garbage",
    ["", ",", " , ", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "01.2.3.4", "[", "[]", "]:[", ":", "1.2.3.4 5.6.7.8", "é",
     "\x00", "1" * 10_000, ":" * 8_000, "%" * 8_000, "for=1.2.3.4"],
)  # fmt: skip
def test_garbage_counts_for_the_last_known_proxy(garbage: str) -> None:
    assert client(garbage) == PROXY
    assert client(f"203.0.113.7, {garbage}, 10.0.0.2") == "10.0.0.2"
    assert client(garbage, "203.0.113.7") == "203.0.113.7"
    assert client(f"{garbage}, 203.0.113.7") == "203.0.113.7"


def test_only_so_many_hops_are_read() -> None:
    assert client("9.9.9.9," + "10.0.0.2," * HOPS + "10.0.0.3") == "10.0.0.2"
    assert client(*["10.0.0.2," * 1_000 + "10.0.0.3"] * 100) == "10.0.0.2"
    assert client("1.1.1.1, " * 100_000 + "203.0.113.7") == "203.0.113.7"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["for=203.0.113.7"], "203.0.113.7"),
        (['for=9.9.9.9, For="203.0.113.7:4711";proto=https;by=10.0.0.1'], "203.0.113.7"),
        (["for=9.9.9.9", 'proto=https;for="[2001:db8::7]:4711"'], "2001:db8::7"),
        (['for=203.0.113.7;host="a, for=9.9.9.9"'], "203.0.113.7"),  # a comma in a quoted text
        (["for=9.9.9.9, for=unknown"], PROXY),
        (["for=9.9.9.9, proto=https"], PROXY),
        (['for="9.9.9.9, for=203.0.113.7'], "203.0.113.7"),
        (['for="[', "for=203.0.113.7"], "203.0.113.7"),
        (["for=9.9.9.9, =,;;=\\"], PROXY),
        (["203.0.113.7"], PROXY),
        (["for=1.1.1.1," * FORWARDED_BYTES + "for=203.0.113.7"], PROXY),  # too long to parse
    ],
)
def test_the_standard_header(lines: list[str], expected: str) -> None:
    assert client(*lines, header="Forwarded") == expected


def test_the_header_that_the_proxy_does_not_set_is_the_clients_own() -> None:
    request = make_mocked_request("GET", "/", {"Forwarded": "for=9.9.9.9", XFF: "203.0.113.7"})
    for header, expected in ((XFF, "203.0.113.7"), ("Forwarded", "9.9.9.9")):
        proxies = TrustedProxies(Settings(trusted_proxies=(PROXY,), forwarded_header=header))  # type: ignore[arg-type]
        assert proxies.client(PROXY, request) == expected


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("fd00::9%eth0", True),
        ("11.0.0.1", False),
        ("::1", False),
        ("", False),
    ],
)
def test_which_peers_are_trusted(peer: str, trusted: bool) -> None:
    assert TrustedProxies(Settings(trusted_proxies=("10.0.0.0/8", "fd00::/8"))).trusts(peer) is trusted
    assert not TrustedProxies(Settings()).trusts(peer)


def test_one_host_has_a_block_of_ipv6() -> None:
    assert block("2001:db8::1") == block("2001:db8::ffff:2%eth0") == "2001:db8::/64"
    assert block("::ffff:1.2.3.4") == block("1.2.3.4") == "1.2.3.4"
    assert block("") == ""
