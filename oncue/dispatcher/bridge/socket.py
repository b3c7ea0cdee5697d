"""The encrypted ROUTER socket that agents dial.

    agent's key ──ZAP──► refused before a message is read, or known as endpoint X
    frame of X ──► channel X (channel.py) ──► effects ──► SendFrame: this socket
                                                      ──► the rest: EffectHandler

The sender of a frame is known by the ZAP user id, never by a routing id, which the peer chooses.
The event loop watches ZeroMQ's file descriptor by `add_reader`. It is edge-triggered: read until
EAGAIN, and check again after each send.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

import zmq

from oncue import curve
from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase, Effect, SendFrame
from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED
from oncue.dispatcher.bridge.send_backlog import LARGE_BYTES, SendBacklog
from oncue.errors import Undecodable
from oncue.processes.descriptors import REFUSE_S
from oncue.protocol import bridge
from oncue.text.log_lines import LineLimiter

log = logging.getLogger("oncue.bridge")
TICK_S = 0.1
READ_S, READ_PARTS = 0.002, 768  # at once, then other callbacks run
MOST_PARTS = 4  # kept of a message: the route, two parts, and one that makes it wrong
HANDSHAKES_AT_ONCE = 64


class EffectHandler(Protocol):
    """The rest of the server, as the socket sees it."""

    def run(self, channel: EndpointChannel, effect: Effect) -> None:
        """Run an effect other than SendFrame."""
        ...

    def answer_unowned(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        """Return the answer to an agent whose endpoint has no channel here.

        None: no answer.
        """
        ...

    def on_read(self, channel: EndpointChannel) -> None:
        """Go on: the agent has read much of what it was sent."""
        ...

    def drop(self, endpoint: str, reason: str, why: str, count: int = 1) -> None:
        """Count what the agent may not send."""
        ...

    def refuse_peer(self, address: str, why: str) -> None:
        """Count a peer without a valid key."""
        ...


class BridgeSocket:
    """Connections of all agents, and the channels of the owned endpoints.

    Each endpoint that this server owns has a channel.
    """

    def __init__(self, keys: curve.Keys, host: str, port: int, effects: EffectHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._effects = effects
        self._context = zmq.Context()
        self._gate = curve.Gate(self._context, effects.refuse_peer)
        self._socket = curve.router(self._context, keys)
        self._listener = curve.bind(self._socket, host, port)
        self.port = self._listener.port
        self.channels: dict[str, EndpointChannel] = {}
        self.paused = NONE_PAUSED
        self._routes: dict[str, bytes] = {}
        self._frames: list[zmq.Frame] = []  # of a message that is being read
        self._backlog = SendBacklog()
        self._limited = LineLimiter(log)
        self._pumping = False
        self._loop.add_reader(self._gate.fileno(), self._on_handshakes)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._on_readable)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------ endpoints

    def admit(self, endpoint: str, public_key: bytes) -> None:
        """Allow this key to connect, as this endpoint."""
        self._gate.allow(public_key, endpoint)

    def open(self, channel: EndpointChannel) -> None:
        """Serve an endpoint that this server owns now."""
        channel.pending.paused = self.paused
        self.channels[channel.endpoint] = channel

    def redirect(self, endpoint: str, epoch: int, to: bridge.Redirect) -> None:
        """Close the channel, and redirect the agent to another server.

        That server claimed the endpoint with this epoch.
        """
        channel = self.channels.pop(endpoint, None)
        if channel is not None:
            channel.redirect(epoch, to)
            self.run_effects(channel)

    def revoke(self, endpoint: str, public_key: bytes) -> None:
        """Refuse the key from now on, and close its connection. Idempotent."""
        self._gate.forbid(public_key)
        channel = self.channels.pop(endpoint, None)
        if channel is not None:
            channel.refuse(
                bridge.Refuse("revoked", "this endpoint was revoked", "register it again: oncue endpoint register")
            )
            self.run_effects(channel)
        self._routes.pop(endpoint, None)

    # ------------------------------------------------------------ in

    def _on_handshakes(self) -> None:
        if not self._socket.closed and self._gate.on_readable(HANDSHAKES_AT_ONCE):
            self._loop.call_soon(self._on_handshakes)

    def _on_readable(self) -> None:
        until, parts = time.monotonic() + READ_S, 0
        while parts < READ_PARTS:
            # Asking costs a third of the exception zmq.Again.
            if not self._frames and not self._readable():
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            parts += 1
            if len(self._frames) < MOST_PARTS:
                self._frames.append(frame)
            if not frame.more:
                frames, self._frames = self._frames, []
                self._on_message(frames)
                if time.monotonic() > until:
                    break
        self._loop.call_soon(self._on_readable)

    def _readable(self) -> bool:
        if self._socket.closed:  # a callback that was scheduled before close
            return False
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        try:
            endpoint = str(frames[-1].get("User-Id"))
        except zmq.ZMQError:  # not authenticated by ZAP; cannot happen
            return
        channel = self.channels.get(endpoint)
        if channel is None:  # owned by another server; or revoked, with frames still arriving
            answer = self._effects.answer_unowned(endpoint, [f.bytes for f in frames[1:]])
            if answer is not None:
                self._send(frames[0].bytes, answer)
            return
        before = self._routes.get(endpoint)
        self._routes[endpoint] = frames[0].bytes
        try:
            channel.on_frame([f.bytes for f in frames[1:]], now_us())
        except Undecodable as e:
            self._refuse_frame(channel, e.message)
        except Exception:  # a bug here; without this, a frame could stop the reading of all others
            self._limited.log(logging.ERROR, endpoint, "a message of endpoint %s failed", endpoint, exc_info=True)
            channel.end_session("error", "sent a message that made the server fail")
        self.run_effects(channel)
        if channel.stray and before is not None:
            self._routes[endpoint] = before  # of the agent whose session it is

    def _refuse_frame(self, channel: EndpointChannel, why: str) -> None:
        self._effects.drop(channel.endpoint, "frame", f"sent a message that cannot be decoded: {why}")
        if channel.refused and channel.phase is ChannelPhase.AWAY:
            return  # it was told already
        refusal = bridge.Refuse(
            "version",
            f"the server (oncue {channel.version}) cannot read the agent's messages: {why}",
            f"install oncue {channel.version} where the agent runs",
        )
        channel.refuse(refusal)

    # ------------------------------------------------------------ out

    def run_effects(self, channel: EndpointChannel) -> None:
        """Run the effects of the channel. To be called after each call of a channel."""
        effects = channel.drain()
        if not effects:
            return
        route = self._routes.get(channel.endpoint)
        sent = False
        for effect in effects:
            if isinstance(effect, SendFrame):
                if route is not None:
                    sent = True
                    self._send(route, effect.parts, channel)
            else:
                self._effects.run(channel, effect)
        if sent and not self._pumping and self._readable():
            self._pumping = True
            self._loop.call_soon(self._read_again)

    def _read_again(self) -> None:
        self._pumping = False
        self._on_readable()

    def _send(self, route: bytes, parts: list[bytes], channel: EndpointChannel | None = None) -> None:
        try:
            if channel is None or len(parts[-1]) < LARGE_BYTES:
                self._socket.send_multipart([route, *parts], zmq.NOBLOCK)
                return
            tracker = self._socket.send_multipart([route, *parts], zmq.NOBLOCK, copy=False, track=True)
            assert tracker is not None
            if self._backlog.add(channel.endpoint, len(parts[-1]), tracker):
                channel.backlogged = True
        except zmq.ZMQError as e:
            # The agent has gone, or does not read. It will notice the gap in the numbers, and send
            # Hello again.
            log.debug("a frame could not be sent: %s", e)

    def with_channel(self, endpoint: str, call: Callable[[EndpointChannel], object]) -> None:
        """Call the endpoint's channel and run its effects.

        Without a channel, do nothing.
        """
        channel = self.channels.get(endpoint)
        if channel is not None:
            channel.now_us = max(channel.now_us, now_us())
            call(channel)
            self.run_effects(channel)

    def _tick(self) -> None:
        at = now_us()
        if not self._socket.closed and self._listener.watch():
            log.warning("too many connections to the bridge's port: for %g s it takes no others", REFUSE_S)
        for endpoint in self._backlog.caught_up():
            found = self.channels.get(endpoint)
            if found is not None and found.backlogged:
                found.backlogged = False
                self._effects.on_read(found)
        for channel in list(self.channels.values()):
            channel.tick(at)
            self.run_effects(channel)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """Close all.

        Callbacks that run later, such as the end of an append, find no channel and do nothing.
        """
        self.channels.clear()
        self._tick_timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self._gate.fileno())
        self._socket.close(linger=200)
        self._listener.close()
        self._gate.close()
        self._context.destroy(linger=200)
