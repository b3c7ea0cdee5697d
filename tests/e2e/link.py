"""A TCP relay between agents and a server, which a test can cut or freeze."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from tests.ports import free_port

#: Servers listen at the first address and announce the second to agents, with the same port.
SERVER, OUTSIDE = "127.0.0.1", "127.0.0.2"


class Link:
    """Relays TCP connections.

    `cut` breaks the connections and refuses new ones. `freeze` keeps them open but passes no bytes.
    `heal` restores the relay; bytes that were held back by `freeze` are delivered then.
    """

    def __init__(self, port: int) -> None:
        self.port, self.passed = port, 0  # bytes
        self._ready, self._open = threading.Event(), True
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"link {port}")
        self._thread.start()
        self._ready.wait()

    def cut(self) -> None:
        self._do(self._cut)

    def freeze(self) -> None:
        self._do(self._flow.clear)

    def heal(self) -> None:
        def healed() -> None:
            self._open = True
            self._flow.set()

        self._do(healed)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(what)
        self._loop.call_soon_threadsafe(done.set)
        done.wait()

    def _cut(self) -> None:
        self._open = False
        self._flow.set()
        for writer in self._writers:
            writer.transport.abort()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._flow, self._end = asyncio.Event(), asyncio.Event()
        self._flow.set()
        server = await asyncio.start_server(self._joined, OUTSIDE, self.port)
        self._ready.set()
        await self._end.wait()
        server.close()
        self._cut()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            to_server, to_client = await asyncio.open_connection(SERVER, self.port)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, to_client}
        self._writers |= writers
        try:
            await asyncio.gather(self._pass(reader, to_client), self._pass(to_server, writer))
        finally:
            self._writers -= writers

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._flow.wait()
                writer.write(data)
                await writer.drain()
                self.passed += len(data)
        writer.close()


@contextlib.contextmanager
def links(count: int) -> Iterator[list[Link]]:
    found = [Link(free_port(SERVER, OUTSIDE)) for _ in range(count)]
    try:
        yield found
    finally:
        for link in found:
            link.close()
