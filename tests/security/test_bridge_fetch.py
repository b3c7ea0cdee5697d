"""Bodies of functions and blobs go to whom may run or read them, by their hash only."""

from __future__ import annotations

import pytest

from oncue.protocol import bridge
from tests.security.test_bridge_matrix import Maker, peers, told
from tests.security.world import World

__all__ = ["peers"]


@pytest.mark.parametrize("name", ["function", "zqmark_fn", "zqmark_fn@1", "zqmark_work.py:zqmark_fn", "blob"])
@pytest.mark.parametrize("offset", [0, 10])
def test_what_is_anothers_is_not_sent(world: World, peers: dict[str, Maker], name: str, offset: int) -> None:
    with peers["another owner's endpoint"]() as peer:
        peer.hello()
        peer.say(bridge.FetchPart(world.ids.get(name, name), offset))
        received = peer.hear(2.0)

    assert any(isinstance(m, bridge.BlobPart) and m.why for m, _ in received), received
    for leak in (b"zqmark-value", b"zqmark-output", b"zqmark-doc", b"zqmark-blob"):
        assert leak not in told(received)
