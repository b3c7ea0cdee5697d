"""The bridge's sockets: one ROUTER, encrypted, to which the agents dial; the state machines are the lanes (channel.py).

    agent's key ──ZAP──► refused before a message is read, or known as endpoint X
    frame of X ──► lane X ──► effects ──► Send: the ROUTER; the rest: the courier (log, view, blobs)

Who sent a frame is the ZAP user id, never a routing id that a peer chose. Raw sockets on `add_reader` of ZeroMQ's file
descriptor, which is edge-triggered: read until EAGAIN, and look again after each send.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import zmq

from oncue import curve
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import Effect, SendFrame
from oncue.errors import Undecodable
from oncue.ids import now_us
from oncue.protocol import bridge

log = logging.getLogger("oncue.bridge")
TICK_S = 0.1
READ_AT_ONCE = 256  # messages, then other work gets its turn


class EffectHandler(Protocol):
    """Carries out what lanes want of the rest of the server."""

    def run(self, channel: EndpointChannel, effect: Effect) -> None: ...

    def answer_unowned(self, endpoint: str, parts: list[bytes]) -> list[bytes] | None:
        """What an agent is told whose endpoint has no lane here; None: nothing."""
        ...


class BridgeSocket:
    def __init__(self, keys: curve.Keys, host: str, port: int, courier: EffectHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._effects = courier
        self._context = zmq.Context()
        self._gate = curve.Gate(self._context)
        self._socket = curve.router(self._context, keys)
        self.port = curve.bind(self._socket, host, port)
        self.channels: dict[str, EndpointChannel] = {}
        self._routes: dict[str, bytes] = {}
        self._pumping = False
        self._loop.add_reader(self._gate.fileno(), self._gate.on_readable)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._on_readable)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------ endpoints

    def admit(self, endpoint: str, public_key: bytes) -> None:
        """From now on this key may connect, as this endpoint."""
        self._gate.allow(public_key, endpoint)

    def open(self, channel: EndpointChannel) -> None:
        """This server acts for the endpoint."""
        self.channels[channel.endpoint] = channel

    def redirect(self, endpoint: str, epoch: int, to: bridge.Redirect) -> None:
        """Another server acts for it, by a claim of this epoch: its agent is sent there."""
        channel = self.channels.pop(endpoint, None)
        if channel is not None:
            channel.redirect(epoch, to)
            self.run_effects(channel)

    def revoke(self, endpoint: str, public_key: bytes) -> None:
        """The key is refused from now on, and its live link is cut: nothing more of it is read. Again is harmless."""
        self._gate.forbid(public_key)
        channel = self.channels.pop(endpoint, None)
        if channel is not None:
            channel.refuse(
                bridge.Refuse("revoked", "this endpoint was revoked", "register it again: oncue endpoint register")
            )
            self.run_effects(channel)
        self._routes.pop(endpoint, None)

    # ------------------------------------------------------------ in

    def _on_readable(self) -> None:
        for _ in range(READ_AT_ONCE):
            if not self._readable():  # a third of what the exception costs that says the same
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._on_message(frames)
        self._loop.call_soon(self._on_readable)

    def _readable(self) -> bool:
        if self._socket.closed:  # a look that was due when the bridge closed
            return False
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        try:
            endpoint = str(frames[-1].get("User-Id"))
        except zmq.ZMQError:  # not through ZAP: cannot be
            return
        channel = self.channels.get(endpoint)
        if channel is None:  # another server's; or revoked, with frames still under way
            answer = self._effects.answer_unowned(endpoint, [f.bytes for f in frames[1:]])
            if answer is not None:
                self._send(frames[0].bytes, answer)
            return
        self._routes[endpoint] = frames[0].bytes
        try:
            channel.on_frame([f.bytes for f in frames[1:]], now_us())
        except Undecodable as e:
            log.warning("endpoint %s sent what cannot be read: %s", endpoint, e.message)
            refusal = bridge.Refuse(
                "version",
                f"the server (oncue {channel.version}) cannot read the agent's messages: {e.message}",
                f"install the same version where the agent runs: pip install 'oncue=={channel.version}'",
            )
            channel.refuse(refusal)
        self.run_effects(channel)

    # ------------------------------------------------------------ out

    def run_effects(self, channel: EndpointChannel) -> None:
        """Carry out what the lane wants, after any call to it."""
        effects = channel.drain()
        if not effects:
            return
        route = self._routes.get(channel.endpoint)
        sent = False
        for effect in effects:
            if isinstance(effect, SendFrame):
                if route is not None:
                    sent = True
                    self._send(route, effect.parts)
            else:
                self._effects.run(channel, effect)
        if sent and not self._pumping and self._readable():
            self._pumping = True
            self._loop.call_soon(self._read_again)

    def _read_again(self) -> None:
        self._pumping = False
        self._on_readable()

    def _send(self, route: bytes, parts: list[bytes]) -> None:
        try:
            self._socket.send_multipart([route, *parts], zmq.NOBLOCK)
        except zmq.ZMQError as e:  # gone, or it does not read: numbers show the gap, the session starts anew
            log.debug("a frame could not be sent: %s", e)

    def with_channel(self, endpoint: str, call: Callable[[EndpointChannel], object]) -> None:
        """Call a lane and carry out what follows; nothing when the endpoint is not there (any more)."""
        channel = self.channels.get(endpoint)
        if channel is not None:
            channel.now_us = max(channel.now_us, now_us())
            call(channel)
            self.run_effects(channel)

    def _tick(self) -> None:
        at = now_us()
        for channel in list(self.channels.values()):
            channel.tick(at)
            self.run_effects(channel)
        self._tick_timer = self._loop.call_later(TICK_S, self._tick)

    def close(self) -> None:
        """What is called later (a lane's append that is durable by then ...) finds no lane, and does nothing."""
        self.channels.clear()
        self._tick_timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self._gate.fileno())
        self._socket.close(linger=200)
        self._gate.close()
        self._context.destroy(linger=200)
