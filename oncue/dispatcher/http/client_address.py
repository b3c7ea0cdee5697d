"""The address for which limits count a request, also behind a proxy.

A proxy in `trusted_proxies` names the client in a header. Each proxy appends the address from which
it got the request, so only the end of the header is trusted: it is read from the right, up to the
first address that is not a trusted proxy's. What stands further left is the client's own claim.

    X-Forwarded-For: 9.9.9.9, 203.0.113.7, 10.0.0.2   from 10.0.0.1; 10.0.0.0/8 is trusted
                     claim    client       trusted
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

from aiohttp import web

from oncue.config import Settings

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HOPS = 32  # that are read
FORWARDED_BYTES = 2_048  # of a header `Forwarded` that is read: its syntax has to be parsed from the left
_LONGEST = 64  # of an address with brackets, zone and port


class TrustedProxies:
    """The proxies whose header names the client."""

    def __init__(self, settings: Settings) -> None:
        self._networks = [ipaddress.ip_network(text) for text in settings.trusted_proxies]
        self._header = settings.forwarded_header

    def trusts(self, address: str) -> bool:
        """Return True if this peer is a trusted proxy."""
        found = _parse(address) if self._networks else None
        return found is not None and self._has(found)

    def _has(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def client(self, peer: str, request: web.BaseRequest) -> str:
        """Return the address of the client for which this trusted peer sent the request.

        Where the header is missing or unreadable, it is that of the last proxy that is known.
        """
        client = peer
        for hop in self._hops(request):
            found = _parse(_without_port(hop.strip()))
            if found is None:
                break
            client = str(found)
            if not self._has(found):
                break
        return client

    def _hops(self, request: web.BaseRequest) -> Iterable[str]:
        """Return the addresses in the header, the last one first."""
        lines: Sequence[str] = request.headers.getall(self._header, ())
        if self._header == "Forwarded":
            if sum(map(len, lines)) > FORWARDED_BYTES:
                return ()
            return [element.get("for", "") for element in reversed(request.forwarded)][:HOPS]
        hops: list[str] = []
        for line in reversed(lines):
            hops += reversed(line.rsplit(",", HOPS)[-HOPS:])
            if len(hops) >= HOPS:
                break
        return hops[:HOPS]


def _without_port(text: str) -> str:
    """Return the address in `1.2.3.4:56`, `[2001:db8::1]:56` or `2001:db8::1`."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _parse(text: str) -> _Address | None:
    """Return an address, a mapped IPv4 one as IPv4; None if the text is none."""
    if len(text) > _LONGEST:
        return None
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


@lru_cache(1_000)
def block(address: str) -> str:
    """Return the address to count for; of IPv6 one host's block of 64 bits."""
    found = _parse(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return address if found is None else str(found)
