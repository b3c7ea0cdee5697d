"""HTTP server for the client's tests: the API's routes of tasks, in memory, with faults on demand.

It runs in a thread with its own event loop. Its state is in a `World`, so that a server can be
stopped and another one started on the same world: a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import msgspec
from aiohttp import web

from oncue import ids
from oncue.client import Client
from oncue.errors import NotFound, OncueError, RateLimited, Unauthorized
from oncue.functions.body import Packed
from oncue.protocol import payload
from oncue.protocol.api import Accepted, BatchRequest, EndpointInfo, FunctionInfo, FunctionRequest, Problem, TaskInfo
from oncue.protocol.buffers import read_buffer
from oncue.protocol.records import CANCELLED, ERROR, OK, Ended, Failure

SUBJECT = "ada"
_encode = msgspec.msgpack.Encoder().encode


class _Blobs:
    """A BlobSource in memory."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self._blobs = blobs

    def read(self, sha256: str) -> bytes:
        return self._blobs[sha256]

    def buffer(self, blob: payload.BlobName) -> Any:
        with tempfile.TemporaryFile() as file:
            file.write(self._blobs[blob.sha256])
            file.flush()
            file.seek(0)
            return read_buffer(file)


class World:
    """State that survives a restart, and faults to inject."""

    def __init__(self) -> None:
        self.tasks: dict[bytes, tuple[BatchRequest, bytes]] = {}
        self.ended: dict[bytes, Ended] = {}
        self.functions: dict[str, FunctionRequest] = {}
        self.blobs: dict[str, bytes] = {}
        self.batches: list[BatchRequest] = []
        self.cancelled: set[bytes] = set()
        self.events: list[dict[str, Any]] = []
        self.owner = SUBJECT
        self.endpoint_id = "ep_mine"  # "ep_hers" is mallory's
        self.hold = threading.Event()  # tasks end only while it is set
        self.hold.set()
        self.sent: set[int] = set()  # indexes of tasks that are at their endpoint already
        self.lose_answers = 0  # of POST tasks/batch: carried out, then the connection is closed
        self.refuse: OncueError | None = None
        self.early = False  # outcomes are sent before the answer of the POST
        self.copies = 1  # how often each outcome is sent
        self.mute = False  # outcomes are not sent to streams
        self.received = threading.Event()  # a batch has arrived
        self.ran = threading.Event()  # ... and its tasks have ended
        self.polled = threading.Event()  # an outcome was requested
        self.streams = 0
        self.no_stream = False  # too many streams are open
        self.limited = 0  # so many events are refused: there are too many requests

    def execute(self, request: BatchRequest, task: bytes, content: bytes) -> Ended:
        try:
            args, kwargs = payload.unpack_args(content, _Blobs(self.blobs))
            fn = cloudpickle.loads(self.functions[request.function].body)
            value = payload.pack(fn(*args, **kwargs))
        except Exception as e:
            failure = Failure(type(e).__name__, str(e), f'  File "user.py", line 1\n{type(e).__name__}: {e}')
            return Ended(task, 1, ERROR, 1, 2, _encode(failure))
        if payload.needs_blob(value):
            name = hashlib.sha256(value).hexdigest()
            self.blobs[name] = value
            value = payload.pack_ref(payload.Ref(name, len(value)))
        return Ended(task, 1, OK, 1, 2, value)


class Server:
    """A server that runs on a world."""

    def __init__(self, world: World, port: int = 0) -> None:
        self.world = world
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._streams: dict[str, list[web.StreamResponse]] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30, middlewares=[_problems])
        app.router.add_get("/v1/me", self._me)
        app.router.add_post("/v1/functions", self._register)
        app.router.add_get("/v1/endpoints/{name}", self._endpoint)
        app.router.add_post("/v1/tasks/batch", self._batch)
        app.router.add_post("/v1/tasks/outcomes", self._ask)
        app.router.add_post("/v1/tasks/cancel", self._cancel)
        app.router.add_get("/v1/tasks/{id}", self._task)
        app.router.add_get("/v1/outcomes", self._stream)
        app.router.add_put("/v1/blobs/{sha}", self._put_blob)
        app.router.add_post("/v1/blobs/missing", self._missing_blobs)
        app.router.add_get("/v1/blobs/{sha}", self._get_blob)
        app.router.add_post("/v1/events", self._events)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        self._ready.set()
        await self._stop.wait()
        for streams in self._streams.values():
            for response in streams:
                if (request := response._req) is not None and request.transport is not None:
                    request.transport.abort()
        await runner.cleanup()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _me(self, request: web.Request) -> web.Response:
        return _json({"subject": SUBJECT, "scopes": ["user"], "server": "0", "server_id": "s"})

    async def _register(self, request: web.Request) -> web.Response:
        f = msgspec.json.decode(await request.read(), type=FunctionRequest)
        name = hashlib.sha256(f.body).hexdigest()
        self.world.functions[name] = f
        return _json(FunctionInfo(id=name, name=f.name, version=1, owner=SUBJECT, python="3", size_bytes=len(f.body)))

    async def _endpoint(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        owner = "mallory" if name == "ep_hers" else self.world.owner
        return _json(EndpointInfo(id="e", name=name, owner=owner, state="connected"))

    async def _batch(self, request: web.Request) -> web.Response:
        w = self.world
        if w.refuse is not None:
            raise w.refuse
        batch = msgspec.msgpack.decode(await request.read(), type=BatchRequest)
        w.batches.append(batch)
        names = ids.batch_ids(SUBJECT, bytes.fromhex(batch.key), len(batch.payloads))
        new = [(n, p) for n, p in zip(names, batch.payloads, strict=True) if n not in w.tasks]
        w.tasks |= {n: (batch, p) for n, p in new}
        work = asyncio.ensure_future(self._run(batch, new))
        w.received.set()
        if w.early:
            await work
        if w.lose_answers:
            w.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(
            body=_encode(Accepted(first=names[0].hex(), count=len(names))),
            content_type="application/msgpack",
            status=202,
        )

    async def _run(self, batch: BatchRequest, new: list[tuple[bytes, bytes]]) -> None:
        if not self.world.hold.is_set():
            await asyncio.to_thread(self.world.hold.wait, 30)
        for name, content in new:
            if name in self.world.cancelled:
                self.world.ended[name] = Ended(name, 1, CANCELLED, 0, 2, _encode(Failure("oncue.TaskCancelled", "")))
            else:
                self.world.ended[name] = self.world.execute(batch, name, content)
        self.world.ran.set()
        if self.world.mute:
            return
        message = _encode([[n, "", self.world.ended[n]] for n, _ in new])
        for response in self._streams.get(batch.stream, []):
            for _ in range(self.world.copies):
                with contextlib.suppress(ConnectionError):
                    await response.write(len(message).to_bytes(4, "big") + message)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.world.no_stream:
            raise RateLimited("64 streams are open with this token")
        response = web.StreamResponse()
        self._streams.setdefault(request.query["stream"], []).append(response)
        self.world.streams += 1
        await response.prepare(request)
        await response.write(b"\0\0\0\0")
        await self._stop.wait()
        return response

    async def _ask(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = msgspec.msgpack.decode(await request.read())
        self.world.polled.set()
        for _ in range(min(20, asked["wait_ms"] // 10)):
            if all(i in self.world.ended for i in asked["ids"]):
                break
            await asyncio.sleep(0.01)
        found = [[i, "", self.world.ended[i]] for i in asked["ids"] if i in self.world.ended]
        return web.Response(body=_encode(found), content_type="application/msgpack")

    async def _cancel(self, request: web.Request) -> web.Response:
        asked = await request.json()
        tasks = [t for t in asked["tasks"] if not (asked.get("waiting") and self._sent(bytes.fromhex(t)))]
        self.world.cancelled |= {bytes.fromhex(t) for t in tasks}
        return _json({"count": len(tasks), "tasks": tasks}, 202)

    def _sent(self, task: bytes) -> bool:
        return task in self.world.ended or list(self.world.tasks).index(task) in self.world.sent

    async def _task(self, request: web.Request) -> web.Response:
        name = bytes.fromhex(request.match_info["id"])
        if name not in self.world.tasks:
            raise NotFound("there is no such task", remedy="look at the list")
        state = "succeeded" if name in self.world.ended else "waiting"
        info = TaskInfo(id=name.hex(), state=state, function="f", name="f", endpoint="local", owner=SUBJECT)
        info = msgspec.structs.replace(info, endpoint_id=self.world.endpoint_id)
        return _json(msgspec.structs.replace(info, sent=self._sent(name)))

    async def _missing_blobs(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["sha256"]
        return _json({"missing": [sha for sha in wanted if sha not in self.world.blobs]})

    async def _put_blob(self, request: web.Request) -> web.Response:
        self.world.blobs[request.match_info["sha"]] = await request.read()
        return web.Response(status=204)

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        found = self.world.blobs.get(request.match_info["sha"])
        if found is None:
            raise NotFound("there is no such blob")
        response = web.StreamResponse()  # chunked, without a length
        await response.prepare(request)
        for start in range(0, len(found), 100_000):
            await response.write(found[start : start + 100_000])
        return response

    async def _events(self, request: web.Request) -> web.Response:
        event = await request.json()
        if self.world.limited:
            self.world.limited -= 1
            raise RateLimited("over 2000 requests a second")
        if "type" not in event:
            return _json({}, 422)
        self.world.events.append(event)
        return _json({"count": 1, "position": event["id"]}, 202)


@web.middleware
async def _problems(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        if request.headers.get("Authorization") == "Bearer bad":
            raise Unauthorized("this token is not known", remedy="make one")
        found: web.StreamResponse = await handler(request)
        return found
    except OncueError as e:
        problem = Problem(
            type=f"urn:oncue:error:{e.code}", title="", status=e.status, detail=e.message, code=e.code, remedy=e.remedy
        )
        return _json(problem, e.status)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", status=status)


@contextlib.contextmanager
def serving(world: World | None = None) -> Iterator[Server]:
    server = Server(world or World())
    try:
        yield server
    finally:
        server.world.hold.set()
        server.stop()


# ---------------------------------------------------------------- what clients submit


def packed(fn: Any, modules: frozenset[str] = frozenset()) -> Packed:
    """Pack a function as the plain pickle that this server runs."""
    body = cloudpickle.dumps(fn)
    name = getattr(fn, "__name__", "fn")
    return Packed(hashlib.sha256(body).hexdigest(), body, name, "", "", "")


def double(x: int) -> int:
    return 2 * x


def shout(text: str) -> str:
    return text.upper()


def fail(kind: str) -> None:
    raise {"value": ValueError, "key": KeyError}.get(kind, RuntimeError)(kind)


class Bomb:
    """Object that makes a folder where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("bomb-went-off",))


def wait_until_unreachable(client: Client) -> None:
    """Wait until the client's sender has found no server."""
    deadline = time.monotonic() + 20
    while client.session.sender.trouble is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)
