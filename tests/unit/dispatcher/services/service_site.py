"""A real embedded log, view and ServerContext, with stand-ins for bridge, ownership and peers.

with_site(folder, work)      runs `work(site)` on a fresh server folder
with_two_sites(folder, work) two servers on one log, each with its own view
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from oncue import curve, ids
from oncue.blobs import open_blobs
from oncue.clocks.process import now_us
from oncue.config import Settings
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.paused_rules import NONE_PAUSED
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.topics import ensure_topics, server_topics
from oncue.dispatcher.view_consumer import ViewConsumer
from oncue.functions import FunctionBody
from oncue.log import Log, Record, Topic, open_log
from oncue.protocol import api as r
from oncue.protocol import payload
from oncue.protocol.codec import encode
from oncue.protocol.records import OK, VERSION, Call, Ended, EndpointRecord, TaskFrame, TaskRecord
from oncue.protocol.topics import RESULTS
from oncue.view import View

ADA = Caller("ada", frozenset({"user"}))
BOB = Caller("bob", frozenset({"user"}))
ADMIN = Caller("root", frozenset({"admin"}))
PATIENCE_S = 30.0


class FakeBridge:
    """Channels without sockets. Effects of the channels are not run."""

    port = 7000

    def __init__(self) -> None:
        self.channels: dict[str, EndpointChannel] = {}
        self.paused = NONE_PAUSED

    def with_channel(self, endpoint: str, call: Callable[[EndpointChannel], object]) -> None:
        if endpoint in self.channels:
            call(self.channels[endpoint])

    def open(self, endpoint: str) -> EndpointChannel:
        channel = self.channels[endpoint] = EndpointChannel(endpoint, 1, "srv", "0")
        return channel


class FakeOwnership:
    """Owns everything, but for the keys in `elsewhere` (key -> URL of the owner)."""

    def __init__(self) -> None:
        self.elsewhere: dict[str, str] = {}
        self.exclusive = True
        self.blob_stores: list[str] = []
        self.synced = 0

    def owns(self, key: str) -> bool:
        return key not in self.elsewhere

    def is_exclusive(self, key: str) -> bool:
        return self.owns(key) and self.exclusive

    def owner_url(self, key: str) -> str:
        return self.elsewhere.get(key, "")

    owner_label = owner_url

    def peer_urls(self) -> list[str]:
        return sorted({*self.elsewhere.values()})

    def other_blob_stores(self) -> list[str]:
        return self.blob_stores

    def sync_endpoints(self) -> list[EndpointRecord]:
        self.synced += 1
        return []

    async def run_while_owned(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        await work()


class FakePeers:
    """Answers of other servers, by URL; `requests` has (method, URL, ...) of each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []
        self.answers: dict[tuple[str, str], Any] = {}  # (method, URL) -> answer

    def _ask(self, method: str, url: str, bearer: str, otherwise: Any, *details: Any) -> Any:
        if not url or not bearer:
            return otherwise
        self.requests.append((method, url, *details))
        return self.answers.get((method, url), otherwise)

    async def task(self, url: str, known: r.TaskInfo, bearer: str) -> r.TaskInfo:
        return self._ask("task", url, bearer, known, known.id)

    async def endpoint(self, url: str, known: r.EndpointInfo, bearer: str) -> r.EndpointInfo:
        return self._ask("endpoint", url, bearer, known, known.id)

    async def cancel_waiting(self, url: str, task_ids: Sequence[bytes], bearer: str) -> list[bytes]:
        return self._ask("cancel_waiting", url, bearer, [], *task_ids)

    async def rules(self, url: str, bearer: str) -> list[r.RuleInfo]:
        return self._ask("rules", url, bearer, [])

    async def triggers(self, url: str, bearer: str) -> list[r.TriggerInfo]:
        return self._ask("triggers", url, bearer, [])

    async def trigger(self, url: str, name: str, bearer: str) -> r.TriggerShown | None:
        return self._ask("trigger", url, bearer, None, name)

    async def trigger_file(self, url: str, name: str, path: str, bearer: str) -> r.TriggerFile | None:
        return self._ask("trigger_file", url, bearer, None, name, path)


class SharedLog:
    """A log that says that other servers use it, too."""

    shared = True

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Site:
    """What a service needs, and steps to put functions, endpoints and tasks there."""

    def __init__(self, folder: Path, context: ServerContext, consumer: ViewConsumer) -> None:
        self.folder, self.context, self._consumer = folder, context, consumer
        self.log, self.view, self.notifier = context.log, context.view, context.notifier
        self.bridge: Any = FakeBridge()
        self.ownership: Any = FakeOwnership()
        self.peers: Any = FakePeers()

    async def add_endpoint(self, name: str = "local", owner: str = "ada", **fields: Any) -> EndpointRecord:
        key = curve.make_keys().public
        record = EndpointRecord(VERSION, f"ep_{owner}_{name}", name, owner, key, now_us(), **fields)
        await self.follow_tasks_of(record.id)
        await self.context.record([(f"endpoint:{record.id}", record)])
        return record

    async def follow_tasks_of(self, endpoint: str) -> None:
        topic = self.context.registry.tasks_topic(endpoint)
        await self.log.ensure({topic: Topic()})
        self._consumer.follow_tasks(topic)

    async def add_function(
        self, name: str = "f", caller: Caller = ADA, result: int = 1, file: str = ""
    ) -> r.FunctionInfo:
        """Register a function that returns `result`: another result is another content."""
        request = msgspec.structs.replace(function_request(name, result), file=file)
        return await FunctionService(self.context).register(caller, request)

    async def add_task(
        self, endpoint: EndpointRecord, owner: str = "ada", event: tuple[str, str] | None = None, **fields: Any
    ) -> bytes:
        """Append one task, as an earlier submit did."""
        task_id = ids.batch_ids(owner, ids.new_uuid7(), 1)[0]
        call = Call(
            **{"v": VERSION, "function": "0" * 64, "endpoint": endpoint.id, "owner": owner, "name": "f"} | fields
        )
        frame = TaskFrame(VERSION, call, now_us(), [TaskRecord(task_id, payload.pack_args((), {}), event)])
        topic = self.context.registry.tasks_topic(endpoint.id)
        await self.context.applied(await self.log.append(topic, [Record(encode(frame))]))
        return task_id

    async def end_task(self, task_id: bytes, status: int = OK, value: Any = None, output: bytes = b"") -> None:
        """Append the result of a task's first attempt."""
        state = await self.view.task(task_id)
        assert state is not None
        packed = payload.pack(value) if status == OK else b""
        ended = Ended(task_id, 1, status, 5, 6, packed, output)
        await self.append_result(state.call, ended)

    async def append_result(self, call: Any, ended: Ended) -> None:
        record = Record(encode((VERSION, call, "", 0, [ended])))
        await self.context.applied(await self.log.append(RESULTS, [record]))


def function_request(name: str = "f", result: int = 1, parameters: Any = None) -> r.FunctionRequest:
    """Return the request for a function whose content depends on `result`."""
    source = f"def f(n=0):\n    return n + {result}\n"
    body = FunctionBody(VERSION, name, "f", "m", "3.11", source, b"", {}, (), "0")
    return r.FunctionRequest(name=name, body=encode(body), parameters=parameters)


@contextlib.asynccontextmanager
async def _site_on(log: Log, folder: Path, settings: Settings) -> AsyncIterator[Site]:
    view = View.open(folder / "view.db")
    notifier = Notifier()
    context = ServerContext(settings, log, view, open_blobs(folder / "blobs"), Metrics(), notifier)
    consumer = ViewConsumer(log, view, notifier, context.server_id, context.reload, lambda batch: None, lambda: False)
    consumer.follow(server_topics(settings), "all")
    running = asyncio.create_task(consumer.run())
    context.ready = True
    try:
        yield Site(folder, context, consumer)
    finally:
        notifier.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await consumer.close()
        context.blob_quota.close()
        await view.close()


def with_site(folder: Path, work: Callable[[Site], Awaitable[None]], *, shared: bool = False, **settings: Any) -> None:
    """Run `work` on one server. `shared`: its log may have other servers."""

    async def main() -> None:
        chosen = Settings(data=str(folder), **settings)
        log = await open_log(chosen.log_url, chosen)
        try:
            await ensure_topics(log, chosen)
            seen: Any = SharedLog(log) if shared else log
            async with asyncio.timeout(PATIENCE_S), _site_on(seen, folder, chosen) as site:
                await work(site)
        finally:
            await log.close()

    asyncio.run(main())


def with_two_sites(folder: Path, work: Callable[[Site, Site], Awaitable[None]]) -> None:
    """Run `work` on two servers that share a log."""

    async def main() -> None:
        chosen = Settings(data=str(folder))
        log = await open_log(chosen.log_url, chosen)
        folders = [folder / "first", folder / "second"]
        for each in folders:
            each.mkdir()
        try:
            await ensure_topics(log, chosen)
            shared: Any = SharedLog(log)
            async with (
                asyncio.timeout(PATIENCE_S),
                _site_on(shared, folders[0], chosen) as first,
                _site_on(shared, folders[1], chosen) as second,
            ):
                await work(first, second)
        finally:
            await log.close()

    asyncio.run(main())


def just_before_record(site: Site, act: Callable[[], Awaitable[Any]]) -> None:
    """Let `act` happen between the checks of the site's next change of the registry and its record."""
    record = site.context.record

    async def later(entries: Any) -> Any:
        site.context.record = record  # type: ignore[method-assign]
        await act()
        return await record(entries)

    site.context.record = later  # type: ignore[method-assign]
