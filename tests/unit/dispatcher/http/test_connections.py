"""Answers that peers have not read, over all connections of a token or an address."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from oncue.config import Settings
from oncue.dispatcher.http.client_address import TrustedProxies
from oncue.dispatcher.http.connections import UNSENT, Connections

MIB = 1 << 20


@dataclass(eq=False)
class Peer:
    reader: tuple[str, str]
    unsent: int
    ended: list[str] = field(default_factory=list)

    def end(self, why: str) -> None:
        self.ended.append(why)


def cut(*peers: Peer) -> tuple[list[Peer], list[str]]:
    """Return the connections that are cut, and the reasons that are counted."""
    reasons: list[str] = []

    async def main() -> None:
        connections = Connections(cast(Any, None), 256, 1_024, 10_000, reasons.append, TrustedProxies(Settings()), 20.0)
        connections._open = dict.fromkeys(cast(Any, peers))
        connections._bound_unsent()
        connections.close()

    asyncio.run(main())
    return [peer for peer in peers if peer.ended], reasons


def test_the_largest_of_a_token_are_cut_until_the_others_fit() -> None:
    small = [Peer(("token", "a"), MIB) for _ in range(100)]
    large = [Peer(("token", "a"), 50 * MIB) for _ in range(2)]

    assert cut(*small, *large) == (large, ["unsent"] * 2)


def test_tokens_and_addresses_are_counted_apart() -> None:
    half = UNSENT // 2 + MIB
    peers = [Peer((kind, name), half) for kind in ("token", "address") for name in "xy"]

    assert cut(*peers) == ([], [])
