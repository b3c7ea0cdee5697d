"""The bridge's sockets, and what comes after they are closed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from oncue import curve
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import Effect, Send
from oncue.dispatcher.bridge.socket import BridgeSocket


class Lanes:
    """A lane and its courier: counts what it is asked."""

    endpoint = "ep_1"
    now_us = 0

    def __init__(self) -> None:
        self.calls = 0

    def durable(self) -> None:
        self.calls += 1

    def tick(self, at: int) -> None:
        self.calls += 1

    def drain(self) -> list[Effect]:
        return [Send([b"hello"])]

    def carry(self, lane: EndpointChannel, effect: Effect) -> None:
        raise AssertionError

    def elsewhere(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        return None


def test_what_is_called_after_the_bridge_is_closed_does_nothing() -> None:
    async def main() -> list[dict[str, Any]]:
        failed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failed.append(context))
        lanes = Lanes()
        bridge = BridgeSocket(curve.make_keys(), "127.0.0.1", 0, lanes)
        lane = cast(EndpointChannel, lanes)
        bridge.open(lane)
        bridge._routes[lane.endpoint] = b"route"
        bridge.with_lane(lane.endpoint, lambda found: cast(Lanes, found).durable())
        assert lanes.calls == 1
        loop.call_soon(bridge.with_lane, lane.endpoint, lambda found: cast(Lanes, found).durable())
        loop.call_soon(bridge._look_again)
        loop.call_soon(bridge._tick)
        loop.call_soon(bridge.act, lane)
        bridge.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bridge._tick_timer.cancel()
        assert lanes.calls == 1
        return failed

    assert asyncio.run(main()) == []
