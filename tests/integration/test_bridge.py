"""Callbacks of the bridge's socket after it was closed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from oncue import curve
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import Effect, SendFrame
from oncue.dispatcher.bridge.socket import BridgeSocket


class CountingChannel:
    """A channel and effect handler that counts the calls."""

    endpoint = "ep_1"
    now_us = 0

    def __init__(self) -> None:
        self.calls = 0
        self.pending = SimpleNamespace()

    def on_stored(self) -> None:
        self.calls += 1

    def tick(self, at: int) -> None:
        self.calls += 1

    def drain(self) -> list[Effect]:
        return [SendFrame([b"hello"])]

    def run(self, channel: EndpointChannel, effect: Effect) -> None:
        raise AssertionError

    def on_read(self, channel: EndpointChannel) -> None:
        raise AssertionError

    def drop(self, endpoint: str, reason: str, why: str, count: int = 1) -> None:
        raise AssertionError

    def refuse_peer(self, address: str, why: str) -> None:
        raise AssertionError

    def answer_unowned(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        return None


def test_callbacks_that_run_after_close_do_nothing() -> None:
    async def main() -> list[dict[str, Any]]:
        failed: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failed.append(context))
        counting = CountingChannel()
        bridge = BridgeSocket(curve.make_keys(), "127.0.0.1", 0, counting)
        channel = cast(EndpointChannel, counting)
        bridge.open(channel)
        bridge._routes[channel.endpoint] = b"route"
        bridge.with_channel(channel.endpoint, lambda found: cast(CountingChannel, found).on_stored())
        assert counting.calls == 1
        loop.call_soon(bridge.with_channel, channel.endpoint, lambda found: cast(CountingChannel, found).on_stored())
        loop.call_soon(bridge._read_again)
        loop.call_soon(bridge._tick)
        loop.call_soon(bridge.run_effects, channel)
        bridge.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bridge._tick_timer.cancel()
        assert counting.calls == 1
        return failed

    assert asyncio.run(main()) == []
